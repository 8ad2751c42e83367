// All timesteps of a neuron in one pass over memory: a tile of channels goes through time while it lies in the cache.
// The same operations in the same order as in PyTorch (fas.neurons), so that forward results are equal bit by bit; compile
// with -ffp-contract=off. Rows are [T, size], size = tokens * width, of float or bfloat16; constants are float, one a channel.
// Each call computes columns [begin, end), shared out among threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

using i64 = std::int64_t;
constexpr int TILE = 256;

struct bf16 {
  std::uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(bf16 x) {
  const std::uint32_t bits = std::uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void narrow(float x, float& to) { to = x; }
inline void narrow(float x, bf16& to) {  // to nearest, ties to even; NaN stays one
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = x != x ? std::uint16_t(0x7fc0) : std::uint16_t(rounded);
}

// Vectors that stay in registers through all timesteps; compilers split them where registers are shorter. Each step waits for
// the one before, so AT_ONCE vectors go through time side by side.
constexpr int LANES = 16, AT_ONCE = 4, COLUMNS = LANES * AT_ONCE;
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef double wide_vec __attribute__((vector_size(8 * LANES), aligned(8)));
typedef std::int32_t mask __attribute__((vector_size(4 * LANES), aligned(4)));
typedef std::uint32_t bits_of __attribute__((vector_size(4 * LANES), aligned(4)));
typedef std::uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));

struct pack {
  vec at[AT_ONCE];
};
#define EACH(v) _Pragma("GCC unroll 4") for (int v = 0; v < AT_ONCE; ++v)

inline vec all(float x) { return x - vec{}; }
inline vec load(const float* from) { return *reinterpret_cast<const vec*>(from); }
inline vec load(const bf16* from) {
  return (vec)(__builtin_convertvector(*reinterpret_cast<const halves*>(from), bits_of) << 16);
}
inline pack load_all(const float* from) {
  pack x;
  EACH(v) x.at[v] = load(from + v * LANES);
  return x;
}
inline void store(vec x, float* to, bool stream) {
#if defined(__AVX512F__)
  if (stream) {
    _mm512_stream_ps(to, reinterpret_cast<__m512>(x));
    return;
  }
#endif
  *reinterpret_cast<vec*>(to) = x;
}
inline void store(vec x, bf16* to, bool) {  // to nearest, ties to even; NaN stays one
  const bits_of bits = (bits_of)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const bits_of whole = (bits_of)(x != x ? (mask)(bits_of{} + 0x7fc0) : (mask)rounded);
  *reinterpret_cast<halves*>(to) = __builtin_convertvector(whole, halves);
}
inline vec pick(mask which, vec yes, vec no) { return which ? yes : no; }
inline vec within(vec x, vec low, vec high) {  // a NaN stays one, as in clamp
  x = pick(x < low, low, x);
  return pick(x > high, high, x);
}

// Results that are too many for the cache go past it.
template <class V>
inline void put(const float* __restrict from, V* __restrict to, int count, bool stream) {
#if defined(__AVX512F__)
  if (sizeof(V) == 4 && stream && reinterpret_cast<std::uintptr_t>(to) % 64 == 0) {
    float* target = reinterpret_cast<float*>(to);
    int i = 0;
    for (; i + 16 <= count; i += 16) _mm512_stream_ps(target + i, _mm512_loadu_ps(from + i));
    for (; i < count; ++i) target[i] = from[i];
    return;
  }
#endif
  for (int i = 0; i < count; ++i) narrow(from[i], to[i]);
}

// Calls work(first column, first channel, count) for tiles that do not cross a token.
template <class F>
inline void tiles(i64 begin, i64 end, i64 width, F work) {
  for (i64 at = begin; at < end;) {
    const i64 channel = at % width;
    const int count = int(std::min({i64(TILE), width - channel, end - at}));
    work(at, channel, count);
    at += count;
  }
}

struct Constants {
  const float *unit, *offset, *start;
};

// Calls work(rows, stride, unit, offset, start, results, their stride, spikes, past the cache?) for COLUMNS at a time, through
// copies where fewer are left.
template <class V, class F>
inline void vectors(i64 begin, i64 end, i64 width, i64 size, const V* rows, int times, Constants by, V* out, float* spikes,
                    int trains, bool stream, F work) {
  std::vector<V> few(std::size_t(times) * COLUMNS), said(few.size());
  std::vector<float> told(std::size_t(trains) * COLUMNS);
  const float* given[3] = {by.unit, by.offset, by.start};
  for (i64 at = begin; at < end;) {
    const i64 channel = at % width;
    const int count = int(std::min({i64(COLUMNS), width - channel, end - at}));
    pack constants[3];
    for (int c = 0; c < 3; ++c) {
      alignas(64) float filled[COLUMNS];
      for (int i = 0; i < COLUMNS; ++i) filled[i] = i < count && given[c] ? given[c][channel + i] : float(c == 0);
      constants[c] = load_all(filled);
    }
    if (count == COLUMNS) {
      const bool past = stream && size % LANES == 0 && reinterpret_cast<std::uintptr_t>(out + at) % 64 == 0;
      work(rows + at, size, constants[0], constants[1], constants[2], out + at, size, spikes ? spikes + at : nullptr, past);
    } else {
      for (int t = 0; t < times; ++t) std::memcpy(&few[t * COLUMNS], rows + t * size + at, sizeof(V) * count);
      work(few.data(), COLUMNS, constants[0], constants[1], constants[2], said.data(), COLUMNS,
           spikes ? told.data() : nullptr, false);
      for (int t = 0; t < times; ++t) std::memcpy(out + t * size + at, &said[t * COLUMNS], sizeof(V) * count);
      for (int t = 0; spikes && t < trains; ++t) std::memcpy(spikes + t * size + at, &told[t * COLUMNS], 4 * count);
    }
    at += count;
  }
}

inline float slope_of(float v, bool both) {
  float slope = std::max(1.0f - std::fabs(v - 1.0f), 0.0f);
  if (both) slope += std::max(1.0f - std::fabs(v), 0.0f);
  return slope;
}

// ---------------------------------------------------------------- sigma-delta

struct Schedule {
  const float *steps, *zones;
  int times, each;
  float low, high;
};

// One micro-step: from the target to the spike; moves the state.
struct Micro {
  vec k, inverse, upper, lower;
  bool waits;

  Micro(float step, float zone)
      : k(all(step)), inverse(all(1.0f / step)), upper(all(1.0f + zone)), lower(all(-zone)), waits(zone != 0.0f) {}

  inline vec operator()(vec target, vec& state, vec offset, vec low, vec high) const {
    const vec u = (target - state) * inverse + offset, none = {};
    vec spike = pick(u >= upper, all(1.0f), none) - pick(u < lower, all(1.0f), none);
    if (!waits) spike += u - u;
    const vec moved = state + spike * k;
    const mask outside = (moved < low) | (moved > high);
    state = pick(outside, state, moved);
    return pick(outside, none, spike);
  }
};

template <class V>
void track(const V* rows, i64 size, i64 begin, i64 end, i64 width, Constants by, Schedule plan, V* out, float* spikes,
           bool stream) {
  const vec low = all(plan.low), high = all(plan.high);
  std::vector<Micro> micros;
  for (int m = 0; m < plan.times * plan.each; ++m) micros.emplace_back(plan.steps[m], plan.zones[m]);
  vectors(begin, end, width, size, rows, plan.times, by, out, spikes, plan.times * plan.each, stream,
          [&](const V* row, i64 stride, pack unit, pack offset, pack state, V* to, i64 to_stride, float* fired, bool past) {
            for (int t = 0, micro = 0; t < plan.times; ++t) {
              pack target;
              EACH(v) target.at[v] = within(load(row + t * stride + v * LANES) / unit.at[v], low, high);
              for (int m = 0; m < plan.each; ++m, ++micro) {
                EACH(v) {
                  const vec spike = micros[micro](target.at[v], state.at[v], offset.at[v], low, high);
                  if (fired) store(spike, fired + micro * to_stride + v * LANES, past);
                }
              }
              EACH(v) store(state.at[v] * unit.at[v], to + t * to_stride + v * LANES, past);
            }
          });
}

void track_back(const float* grad, const float* rows, i64 size, i64 begin, i64 end, i64 width, Constants by, Schedule plan,
                float* by_rows, float* by_unit, float* by_offset) {
  const int micros = plan.times * plan.each;
  std::vector<float> ratios(std::size_t(plan.times) * TILE), states(ratios.size());
  std::vector<float> slopes(std::size_t(micros) * TILE);
  tiles(begin, end, width, [&](i64 at, i64 channel, int count) {
    float state[TILE], back[TILE], on_target[TILE];
    const float *__restrict unit = by.unit + channel, *__restrict offset = by.offset + channel;
    std::memcpy(state, by.start + channel, 4 * count);
    for (int t = 0; t < plan.times; ++t) {
      float *__restrict ratio = &ratios[t * TILE], *__restrict kept = &states[t * TILE];
      const float* __restrict row = rows + t * size + at;
      for (int i = 0; i < count; ++i) ratio[i] = row[i] / unit[i];
      for (int micro = t * plan.each; micro < (t + 1) * plan.each; ++micro) {
        const float k = plan.steps[micro], inverse = 1.0f / k, zone = plan.zones[micro];
        float* __restrict slope = &slopes[micro * TILE];
        for (int i = 0; i < count; ++i) {
          const float target = ratio[i] < plan.low ? plan.low : (ratio[i] > plan.high ? plan.high : ratio[i]);
          float u = (target - state[i]) * inverse + offset[i];
          u -= u >= 0.5f ? zone : -zone;
          const float moved = state[i] + std::min(std::max(std::floor(u), -1.0f), 1.0f) * k;
          const bool stays = moved >= plan.low && moved <= plan.high;
          state[i] = stays ? moved : state[i];
          slope[i] = stays ? slope_of(u, true) : 0.0f;
        }
      }
      std::memcpy(kept, state, 4 * count);
    }
    std::fill(back, back + count, 0.0f);
    float *__restrict on_unit = by_unit + channel, *__restrict on_offset = by_offset + channel;
    for (int t = plan.times - 1; t >= 0; --t) {
      const float *__restrict ratio = &ratios[t * TILE], *__restrict kept = &states[t * TILE];
      const float* __restrict given = grad + t * size + at;
      for (int i = 0; i < count; ++i) {
        back[i] += given[i] * unit[i];
        on_unit[i] += given[i] * kept[i];
        on_target[i] = 0.0f;
      }
      for (int micro = (t + 1) * plan.each - 1; micro >= t * plan.each; --micro) {
        const float k = plan.steps[micro];
        const float* __restrict slope = &slopes[micro * TILE];
        for (int i = 0; i < count; ++i) {
          const float moved = back[i] * slope[i];
          on_offset[i] += moved * k;
          on_target[i] += moved;
          back[i] -= moved;
        }
      }
      float* __restrict result = by_rows + t * size + at;
      for (int i = 0; i < count; ++i) {
        const bool inside = ratio[i] >= plan.low && ratio[i] <= plan.high;
        const float on_row = inside ? on_target[i] / unit[i] : 0.0f;
        result[i] = on_row;
        on_unit[i] -= on_row * ratio[i];
      }
    }
  });
}

// ---------------------------------------------------------------- integrate-and-fire

struct Firing {
  int times;
  bool both, mean;
};

// v0 + q_t / theta of timestep t: the running mean times t, or the sum so far (in double, as torch.cumsum on a CPU).
template <class V>
inline void potential(const V* __restrict row, int t, bool mean, const float* __restrict theta,
                      const float* __restrict offset, double* __restrict sum, float* __restrict level,
                      float* __restrict charge, int count) {
  if (mean) {
    const float time = float(t + 1);
    for (int i = 0; i < count; ++i) charge[i] = wide(row[i]) * time / theta[i];
  } else {
    for (int i = 0; i < count; ++i) {
      sum[i] += double(wide(row[i]));
      charge[i] = float(sum[i]) / theta[i];
    }
  }
  for (int i = 0; i < count; ++i) level[i] = charge[i] + offset[i];
}

template <class V>
void fire(const V* rows, i64 size, i64 begin, i64 end, i64 width, Constants by, Firing how, V* out, float* spikes,
          bool stream) {
  const vec one = all(1.0f), none = all(0.0f), down = all(how.both ? 1.0f : 0.0f);
  vectors(begin, end, width, size, rows, how.times, by, out, spikes, how.times, stream,
          [&](const V* row, i64 stride, pack theta, pack offset, pack counts, V* to, i64 to_stride, float* fired,
              bool past) {
            wide_vec sum[AT_ONCE] = {};
            for (int t = 0; t < how.times; ++t) {
              const vec time = all(float(t + 1));
              EACH(v) {
                const vec x = load(row + t * stride + v * LANES);
                vec charge = x * time;
                if (!how.mean) {
                  sum[v] += __builtin_convertvector(x, wide_vec);
                  charge = __builtin_convertvector(sum[v], vec);
                }
                const vec left = charge / theta.at[v] + offset.at[v] - counts.at[v];
                const vec spike = pick(left >= one, one, none) - pick(left < none, down, none);
                counts.at[v] += spike;
                if (fired) store(spike, fired + t * to_stride + v * LANES, past);
                store((how.mean ? counts.at[v] / time : spike) * theta.at[v], to + t * to_stride + v * LANES, past);
              }
            }
          });
}

void fire_back(const float* grad, const float* rows, i64 size, i64 begin, i64 end, i64 width, Constants by, Firing how,
               float* by_rows, float* by_theta, float* by_offset) {
  std::vector<float> charges(std::size_t(how.times) * TILE), slopes(charges.size()), counts(charges.size());
  tiles(begin, end, width, [&](i64 at, i64 channel, int count) {
    float level[TILE], total[TILE] = {}, back[TILE] = {}, later[TILE] = {};
    double sum[TILE] = {};
    const float *__restrict theta = by.unit + channel, *__restrict offset = by.offset + channel;
    float *__restrict on_theta = by_theta + channel, *__restrict on_offset = by_offset + channel;
    for (int t = 0; t < how.times; ++t) {
      float *__restrict charge = &charges[t * TILE], *__restrict slope = &slopes[t * TILE];
      float* __restrict given_out = &counts[t * TILE];
      potential(rows + t * size + at, t, how.mean, theta, offset, sum, level, charge, count);
      for (int i = 0; i < count; ++i) {
        const float left = level[i] - total[i];
        const float spike = (left >= 1.0f ? 1.0f : 0.0f) - (how.both && left < 0.0f ? 1.0f : 0.0f);
        total[i] += spike;
        slope[i] = slope_of(left, how.both);
        given_out[i] = how.mean ? total[i] : spike;
      }
    }
    for (int t = how.times - 1; t >= 0; --t) {
      const float *__restrict charge = &charges[t * TILE], *__restrict slope = &slopes[t * TILE];
      const float *__restrict said = &counts[t * TILE], *__restrict row = grad + t * size + at;
      float* __restrict result = by_rows + t * size + at;
      const float time = float(t + 1);
      for (int i = 0; i < count; ++i) {
        const float given = how.mean ? row[i] / time : row[i];
        const float on_spike = back[i] + given * theta[i];
        const float on_level = on_spike * slope[i];
        back[i] = (how.mean ? on_spike : back[i]) - on_level;
        on_theta[i] += given * said[i] - on_level * charge[i] / theta[i];
        on_offset[i] += on_level;
        const float on_charge = on_level / theta[i];
        later[i] += on_charge;
        result[i] = how.mean ? on_charge * time : later[i];
      }
    }
  });
}

// ---------------------------------------------------------------- QCFS

template <class V>
void quantize(const V* x, i64 begin, i64 end, i64 width, const float* units, float low, float high, V* out, bool stream) {
  tiles(begin, end, width, [&](i64 at, i64 channel, int count) {
    alignas(64) float value[TILE];
    const float* __restrict unit = units + channel;
    const V* __restrict from = x + at;
    for (int i = 0; i < count; ++i) {
      const float code = std::floor(wide(from[i]) / unit[i] + 0.5f);
      value[i] = (code < low ? low : (code > high ? high : code)) * unit[i];
    }
    put(value, out + at, count, stream);
  });
}

// Which multiple of its unit each value is, plus 128: operands of integer products.
void count(const float* x, i64 begin, i64 end, i64 width, const float* units, std::uint8_t* out) {
  tiles(begin, end, width, [&](i64 at, i64 channel, int count) {
    const float *__restrict unit = units + channel, *__restrict from = x + at;
    std::uint8_t* __restrict to = out + at;
    for (int i = 0; i < count; ++i) to[i] = std::uint8_t(int(std::floor(from[i] / unit[i] + 128.5f)));
  });
}

void quantize_back(const float* grad, const float* x, i64 begin, i64 end, i64 width, const float* units, float low,
                   float high, float* by_x, float* by_unit) {
  tiles(begin, end, width, [&](i64 at, i64 channel, int count) {
    const float *__restrict unit = units + channel, *__restrict from = x + at, *__restrict given = grad + at;
    float *__restrict to = by_x + at, *__restrict on_unit = by_unit + channel;
    for (int i = 0; i < count; ++i) {
      const float u = from[i] / unit[i], code = std::floor(u + 0.5f);
      const bool inside = u >= low && u <= high;
      const float clipped = code < low ? low : (code > high ? high : code);
      to[i] = inside ? given[i] : given[i] * 0.0f;
      on_unit[i] += given[i] * (clipped - (inside ? u : 0.0f));
    }
  });
}

// ---------------------------------------------------------------- integer products of few rows

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define FAS_FEW 1
// Sums of products of ROWS rows of codes with two rows of weights, both [.., depth] of 16 bits, depth a multiple of 32. A lane
// takes depth / 16 products of at most 127 * 32512, so 8192 values of depth fit 32 bits.
template <int ROWS>
inline void sums_of(const std::int16_t* codes, const std::int16_t* first, const std::int16_t* second, i64 depth,
                    double* out) {
  double total[2][ROWS] = {};
  for (i64 from = 0; from < depth; from += 8192) {
    const i64 to = std::min(depth, from + 8192);
    __m512i sums[2][ROWS];
    for (int r = 0; r < ROWS; ++r) sums[0][r] = sums[1][r] = _mm512_setzero_si512();
    for (i64 k = from; k < to; k += 32) {
      const __m512i left = _mm512_loadu_si512(first + k), right = _mm512_loadu_si512(second + k);
      for (int r = 0; r < ROWS; ++r) {
        const __m512i code = _mm512_loadu_si512(codes + r * depth + k);
        sums[0][r] = _mm512_dpwssd_epi32(sums[0][r], code, left);
        sums[1][r] = _mm512_dpwssd_epi32(sums[1][r], code, right);
      }
    }
    for (int n = 0; n < 2; ++n)
      for (int r = 0; r < ROWS; ++r) {
        const __m512d low = _mm512_cvtepi32_pd(_mm512_castsi512_si256(sums[n][r]));
        const __m512d high = _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(sums[n][r], 1));
        total[n][r] += _mm512_reduce_add_pd(_mm512_add_pd(low, high));
      }
  }
  for (int n = 0; n < 2; ++n)
    for (int r = 0; r < ROWS; ++r) out[n * ROWS + r] = total[n][r];
}

// Outputs [begin, end) of x [rows, inputs] (multiples of unit) times weights [outputs, depth] of the given steps, plus bias.
void multiply(const float* x, int rows, i64 inputs, i64 depth, const float* unit, const std::int16_t* weights, i64 begin,
              i64 end, i64 outputs, const float* step, const float* bias, float* out) {
  std::vector<std::int16_t> codes(std::size_t(8) * depth, 0);
  for (int from = 0; from < rows; from += 8) {
    const int count = std::min(8, rows - from);
    std::fill(codes.begin(), codes.end(), std::int16_t(0));
    for (int r = 0; r < count; ++r) {
      const float* __restrict row = x + (from + r) * inputs;
      std::int16_t* __restrict code = &codes[r * depth];
      for (i64 k = 0; k < inputs; ++k) code[k] = std::int16_t(int(std::floor(row[k] / unit[k] + 0.5f)));
    }
    for (i64 n = begin; n < end; n += 2) {
      const bool both = n + 1 < end;
      const std::int16_t *first = weights + n * depth, *second = both ? first + depth : first;
      double sums[16];
      if (count > 4)
        sums_of<8>(codes.data(), first, second, depth, sums);
      else if (count > 1)
        sums_of<4>(codes.data(), first, second, depth, sums);
      else
        sums_of<1>(codes.data(), first, second, depth, sums);
      const int stride = count > 4 ? 8 : count > 1 ? 4 : 1;
      for (int m = 0; m < (both ? 2 : 1); ++m)
        for (int r = 0; r < count; ++r)
          out[(from + r) * outputs + n + m] = float(sums[m * stride + r] * double(step[n + m])) + (bias ? bias[n + m] : 0.0f);
    }
  }
}
#else
#define FAS_FEW 0
#endif

// Calls work(first, last, number) for the parts of [begin, end) that each thread of PyTorch's own pool gets, in whole cache lines.
template <class F>
void shared(i64 begin, i64 end, int threads, F work) {
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      const i64 count = omp_get_num_threads(), number = omp_get_thread_num();
      const i64 each = ((end - begin + count - 1) / count + 15) / 16 * 16;
      const i64 from = std::min(end, begin + number * each), to = std::min(end, from + each);
      if (from < to) work(from, to, number);
    }
    return;
  }
#endif
  work(begin, end, i64(0));
}

}  // namespace

// kind: 0 float, 1 bfloat16; pointers of constants are one float a channel; spikes may be null. What is summed over tokens is
// written to rows of their own, one a thread.
extern "C" {

int fas_shares() {
#if defined(_OPENMP)
  return 1;
#else
  return 0;
#endif
}

void fas_sigma_delta(int kind, const void* rows, i64 size, i64 begin, i64 end, i64 width, const float* unit,
                     const float* offset, const float* start, const float* steps, const float* zones, int times, int each,
                     float low, float high, void* out, float* spikes, int stream, int threads) {
  const Constants by{unit, offset, start};
  const Schedule plan{steps, zones, times, each, low, high};
  shared(begin, end, threads, [&](i64 from, i64 to, i64) {
    if (kind == 0)
      track((const float*)rows, size, from, to, width, by, plan, (float*)out, spikes, stream);
    else
      track((const bf16*)rows, size, from, to, width, by, plan, (bf16*)out, spikes, stream);
  });
}

void fas_sigma_delta_back(const float* grad, const float* rows, i64 size, i64 begin, i64 end, i64 width, const float* unit,
                          const float* offset, const float* start, const float* steps, const float* zones, int times,
                          int each, float low, float high, float* by_rows, float* by_unit, float* by_offset, int threads) {
  shared(begin, end, threads, [&](i64 from, i64 to, i64 number) {
    track_back(grad, rows, size, from, to, width, {unit, offset, start}, {steps, zones, times, each, low, high}, by_rows,
               by_unit + number * width, by_offset + number * width);
  });
}

void fas_fire(int kind, const void* rows, i64 size, i64 begin, i64 end, i64 width, const float* theta, const float* offset,
              int times, int both, int mean, void* out, float* spikes, int stream, int threads) {
  const Constants by{theta, offset, nullptr};
  const Firing how{times, both != 0, mean != 0};
  shared(begin, end, threads, [&](i64 from, i64 to, i64) {
    if (kind == 0)
      fire((const float*)rows, size, from, to, width, by, how, (float*)out, spikes, stream);
    else
      fire((const bf16*)rows, size, from, to, width, by, how, (bf16*)out, spikes, stream);
  });
}

void fas_fire_back(const float* grad, const float* rows, i64 size, i64 begin, i64 end, i64 width, const float* theta,
                   const float* offset, int times, int both, int mean, float* by_rows, float* by_theta, float* by_offset,
                   int threads) {
  shared(begin, end, threads, [&](i64 from, i64 to, i64 number) {
    fire_back(grad, rows, size, from, to, width, {theta, offset, nullptr}, {times, both != 0, mean != 0}, by_rows,
              by_theta + number * width, by_offset + number * width);
  });
}

void fas_quantize(int kind, const void* x, i64 begin, i64 end, i64 width, const float* unit, float low, float high,
                  void* out, int stream, int threads) {
  shared(begin, end, threads, [&](i64 from, i64 to, i64) {
    if (kind == 0)
      quantize((const float*)x, from, to, width, unit, low, high, (float*)out, stream);
    else
      quantize((const bf16*)x, from, to, width, unit, low, high, (bf16*)out, stream);
  });
}

void fas_quantize_back(const float* grad, const float* x, i64 begin, i64 end, i64 width, const float* unit, float low,
                       float high, float* by_x, float* by_unit, int threads) {
  shared(begin, end, threads, [&](i64 from, i64 to, i64 number) {
    quantize_back(grad, x, from, to, width, unit, low, high, by_x, by_unit + number * width);
  });
}

void fas_count(const float* x, i64 begin, i64 end, i64 width, const float* unit, std::uint8_t* out, int threads) {
  shared(begin, end, threads, [&](i64 from, i64 to, i64) { count(x, from, to, width, unit, out); });
}

int fas_multiplies() { return FAS_FEW; }

void fas_multiply(const float* x, int rows, i64 inputs, i64 depth, const float* unit, const std::int16_t* weights, i64 begin,
                  i64 end, i64 outputs, const float* step, const float* bias, float* out, int threads) {
#if FAS_FEW
  shared(begin, end, threads, [&](i64 from, i64 to, i64) {
    multiply(x, rows, inputs, depth, unit, weights, from, to, outputs, step, bias, out);
  });
#endif
}
}
