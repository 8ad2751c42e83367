// Products of whole numbers: what sites hand on, in units, times weights of 16 bits (fas.runtime.products).

#include "common.h"

namespace {

// Which multiple of its unit each value is, plus 128: operands of integer products.
void count(const float* x, i64 begin, i64 end, i64 width, const float* units, std::uint8_t* out) {
  tiles(begin, end, width, [&](i64 at, i64 channel, int count) {
    const float *__restrict unit = units + channel, *__restrict from = x + at;
    std::uint8_t* __restrict to = out + at;
    for (int i = 0; i < count; ++i) to[i] = std::uint8_t(int(std::floor(from[i] / unit[i] + 128.5f)));
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

}  // namespace

extern "C" {

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
