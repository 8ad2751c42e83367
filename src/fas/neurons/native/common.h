// What all kernels share: vectors, tiles of channels, threads, and rounding to bfloat16.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__AVX__)
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

// Vectors as long as the registers, in which they stay through all timesteps: compilers take longer ones apart, number by number.
// Each step waits for the one before, so AT_ONCE vectors go through time side by side, as many as there are registers for.
#if defined(__AVX512F__)
constexpr int LANES = 16, AT_ONCE = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, AT_ONCE = 2;
#else
constexpr int LANES = 4, AT_ONCE = 2;
#endif
constexpr int COLUMNS = LANES * AT_ONCE;
constexpr int AHEAD = 256;  // columns that are asked for before their turn
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
#if defined(__AVX512F__)
  return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#endif
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
#elif defined(__AVX__)
  if (stream) {
    _mm256_stream_ps(to, (__m256)x);
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
inline vec added(vec left, vec right, vec sum) {  // where rounding need not be PyTorch's
#if defined(__AVX512F__)
  return (vec)_mm512_fmadd_ps((__m512)left, (__m512)right, (__m512)sum);
#elif defined(__FMA__) && defined(__AVX2__)
  return (vec)_mm256_fmadd_ps((__m256)left, (__m256)right, (__m256)sum);
#else
  return left * right + sum;
#endif
}
inline float sum_of(vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < LANES; ++i) total += x[i];
  return total;
#endif
}
inline vec within(vec x, vec low, vec high) {  // a NaN stays one, as in clamp
#if defined(__AVX512F__)
  return (vec)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)x));
#endif
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
