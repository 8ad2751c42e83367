// Products of few rows in which most values may be zero: only the weights of inputs that are not zero in some row are read,
// once for all rows (fas.runtime.products).

#include "common.h"

namespace {

constexpr int ROWS = 8, PIECE = 512, GROUP = 4;

// Values of a weight: float, bfloat16, or whole numbers of 16 and 8 bits.
#if defined(__AVX512F__)
inline vec load(const std::int16_t* from) {
  return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)from)));
}
inline vec load(const std::int8_t* from) {
  return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
}
#elif defined(__AVX2__)
inline vec load(const std::int16_t* from) {
  return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)from)));
}
inline vec load(const std::int8_t* from) {
  return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
}
#else
template <class W>
inline vec load(const W* from) {
  vec x;
  for (int i = 0; i < LANES; ++i) x[i] = from[i];
  return x;
}
#endif

inline float wide(std::int16_t x) { return x; }
inline float wide(std::int8_t x) { return x; }

// Inputs of which some row is not `base`, and by how much, in units [.., ROWS]; zeros behind the last row and the last input, so
// that GROUP at a time can be taken.
struct Active {
  std::vector<std::int32_t> inputs;
  std::vector<float> values;
};

// Calls work(k) for inputs of which some row is not base (null: zero); a NaN is not.
template <class X, class F>
inline void each_active(const X* x, int rows, i64 width, const float* base, F work) {
  i64 k = 0;
  for (; k + LANES <= width; k += LANES) {
    const vec rest = base ? load(base + k) : vec{};
    mask fires{};
    for (int r = 0; r < rows; ++r) fires |= load(x + r * width + k) != rest;
    for (int i = 0; i < LANES; ++i)
      if (fires[i]) work(k + i);
  }
  for (; k < width; ++k) {
    bool fires = false;
    for (int r = 0; r < rows; ++r) fires |= wide(x[r * width + k]) != (base ? base[k] : 0.0f);
    if (fires) work(k);
  }
}

template <class X>
void find(const X* x, int rows, i64 width, const float* base, const float* unit, Active& active) {
  active.inputs.clear();
  active.values.clear();
  each_active(x, rows, width, base, [&](i64 k) {
    float value[ROWS] = {};
    const float rest = base ? base[k] : 0.0f, one = unit ? 1.0f / unit[k] : 1.0f;
    for (int r = 0; r < rows; ++r) value[r] = (wide(x[r * width + k]) - rest) * one;
    active.inputs.push_back(std::int32_t(k));
    active.values.insert(active.values.end(), value, value + ROWS);
  });
  while (active.inputs.size() % GROUP) {  // never entered where nothing fires
    active.inputs.push_back(active.inputs.back());
    active.values.insert(active.values.end(), ROWS, 0.0f);
  }
}

// Adds GROUP inputs to `count` sums (a multiple of LANES) of R rows.
template <int R, class W>
inline void add(const W* const* from, const W* const* next, const float* values, i64 count, float* sums) {
  for (i64 c = 0; c < count; c += LANES) {
    vec weight[GROUP];
    for (int g = 0; g < GROUP; ++g) {
      weight[g] = load(from[g] + c);
      __builtin_prefetch(next[g] + c);
    }
    for (int r = 0; r < R; ++r) {
      float* at = sums + r * PIECE + c;
      vec sum = load(at);
      for (int g = 0; g < GROUP; ++g) sum = added(weight[g], all(values[g * ROWS + r]), sum);
      store(sum, at, false);
    }
  }
}

// Outputs [begin, end) of R rows: values times rows of weights [inputs, outputs], each output times its step, plus bias.
template <int R, class W, class Y>
void gather(const Active& active, int rows, const W* weights, i64 outputs, i64 begin, i64 end, const float* step,
            const float* bias, Y* out) {
  alignas(64) float sums[R * PIECE];
  for (i64 from = begin; from < end; from += PIECE) {
    const i64 count = std::min(i64(PIECE), end - from), whole = count / LANES * LANES;
    std::memset(sums, 0, sizeof(sums));
    for (std::size_t i = 0; i < active.inputs.size(); i += GROUP) {
      const std::size_t ahead = std::min(i + GROUP, active.inputs.size() - GROUP);
      const W *now[GROUP], *next[GROUP];
      for (int g = 0; g < GROUP; ++g) {
        now[g] = weights + active.inputs[i + g] * outputs + from;
        next[g] = weights + active.inputs[ahead + g] * outputs + from;
      }
      const float* values = &active.values[i * ROWS];
      add<R>(now, next, values, whole, sums);
      for (i64 c = whole; c < count; ++c)
        for (int r = 0; r < R; ++r)
          for (int g = 0; g < GROUP; ++g) sums[r * PIECE + c] += values[g * ROWS + r] * wide(now[g][c]);
    }
    for (int r = 0; r < rows; ++r)
      for (i64 c = 0; c < count; ++c) {
        float y = sums[r * PIECE + c];
        if (step) y *= step[from + c];
        narrow(bias ? y + bias[from + c] : y, out[r * outputs + from + c]);
      }
  }
}

struct Weights {
  int kind;  // 0 float, 1 bfloat16, 2 int16, 3 int8
  const void* at;
  i64 inputs, outputs;
  const float *step, *bias;
};

template <class W, class X>
void sum(const Active& active, int rows, const Weights& of, i64 first, i64 last, X* out) {
  const W* at = (const W*)of.at;
  if (rows > 4)
    gather<8>(active, rows, at, of.outputs, first, last, of.step, of.bias, out);
  else if (rows > 2)
    gather<4>(active, rows, at, of.outputs, first, last, of.step, of.bias, out);
  else if (rows > 1)
    gather<2>(active, rows, at, of.outputs, first, last, of.step, of.bias, out);
  else
    gather<1>(active, rows, at, of.outputs, first, last, of.step, of.bias, out);
}

template <class X>
void products(const X* x, int rows, const float* base, const float* unit, const Weights& of, X* out, int threads) {
  static thread_local Active active;
  for (int from = 0; from < rows; from += ROWS) {
    const int count = std::min(ROWS, rows - from);
    find(x + from * of.inputs, count, of.inputs, base, unit, active);
    const Active& found = active;
    X* to = out + from * of.outputs;
    shared(0, of.outputs, threads, [&](i64 first, i64 last, i64) {
      if (of.kind == 0)
        sum<float>(found, count, of, first, last, to);
      else if (of.kind == 1)
        sum<bf16>(found, count, of, first, last, to);
      else if (of.kind == 2)
        sum<std::int16_t>(found, count, of, first, last, to);
      else
        sum<std::int8_t>(found, count, of, first, last, to);
    });
  }
}

}  // namespace

extern "C" {

// x [rows, inputs] and out [rows, outputs] of kind 0 (float) or 1 (bfloat16): (x - base) / unit times weights [inputs, outputs].
void fas_gather(int kind, const void* x, int rows, i64 inputs, const float* base, const float* unit, int weight,
                const void* weights, i64 outputs, const float* step, const float* bias, void* out, int threads) {
  const Weights of{weight, weights, inputs, outputs, step, bias};
  if (kind == 0)
    products((const float*)x, rows, base, unit, of, (float*)out, threads);
  else
    products((const bf16*)x, rows, base, unit, of, (bf16*)out, threads);
}

// How many inputs have some row that is not base.
i64 fas_active(int kind, const void* x, int rows, i64 inputs, const float* base) {
  i64 count = 0;
  const auto counted = [&](i64) { ++count; };
  if (kind == 0)
    each_active((const float*)x, rows, inputs, base, counted);
  else
    each_active((const bf16*)x, rows, inputs, base, counted);
  return count;
}
}
