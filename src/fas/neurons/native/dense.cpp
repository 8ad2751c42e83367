// Products of few rows of which all values count, with weights [outputs, inputs], each read once for eight rows.

#include "common.h"

namespace {

constexpr int ROWS = 8;
constexpr i64 DEEP = 1024;  // inputs at a time, so that eight rows of them stay in the nearest cache

// Adds the products of inputs [from, to) of R rows with N outputs to sums [N][R].
template <int R, int N, class W>
inline void products(const float* x, i64 width, const W* weights, i64 inputs, i64 from, i64 to, float* sums) {
  vec total[N][R] = {};
  i64 k = from;
  for (; k + LANES <= to; k += LANES) {
    vec weight[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) weight[n] = load(weights + n * inputs + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vec value = load(x + r * width + k);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) total[n][r] = added(weight[n], value, total[n][r]);
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float sum = sum_of(total[n][r]);
      for (i64 rest = k; rest < to; ++rest) sum += wide(weights[n * inputs + rest]) * x[r * width + rest];
      sums[n * R + r] += sum;
    }
}

// Outputs [begin, end) of R rows x [R, inputs].
template <int R, class W, class X>
void outputs_of(const float* x, i64 inputs, const W* weights, i64 outputs, const float* bias, i64 begin, i64 end, X* out) {
  constexpr int N = R > 2 ? 2 : 4;
  std::vector<float> sums(std::size_t((end - begin + N) * R), 0.0f);
  for (i64 from = 0; from < inputs; from += DEEP) {
    const i64 to = std::min(inputs, from + DEEP);
    i64 n = begin;
    for (; n + N <= end; n += N) products<R, N>(x, inputs, weights + n * inputs, inputs, from, to, &sums[(n - begin) * R]);
    for (; n < end; ++n) products<R, 1>(x, inputs, weights + n * inputs, inputs, from, to, &sums[(n - begin) * R]);
  }
  for (i64 n = begin; n < end; ++n)
    for (int r = 0; r < R; ++r) narrow(sums[(n - begin) * R + r] + (bias ? bias[n] : 0.0f), out[r * outputs + n]);
}

template <class X, class W>
void multiply(const X* x, int rows, i64 inputs, const W* weights, i64 outputs, const float* bias, X* out, int threads) {
  std::vector<float> room(std::size_t(ROWS * inputs + 16));
  float* wider = room.data();
  while (reinterpret_cast<std::uintptr_t>(wider) % 64) ++wider;  // loads across cache lines take twice as long
  for (int from = 0; from < rows;) {
    const int left = rows - from, count = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    for (i64 i = 0; i < count * inputs; ++i) wider[i] = wide(x[from * inputs + i]);
    X* to = out + from * outputs;
    shared(0, outputs, threads, [&](i64 first, i64 last, i64) {
      if (count == 8)
        outputs_of<8>(wider, inputs, weights, outputs, bias, first, last, to);
      else if (count == 4)
        outputs_of<4>(wider, inputs, weights, outputs, bias, first, last, to);
      else if (count == 2)
        outputs_of<2>(wider, inputs, weights, outputs, bias, first, last, to);
      else
        outputs_of<1>(wider, inputs, weights, outputs, bias, first, last, to);
    });
    from += count;
  }
}

}  // namespace

extern "C" {

// x [rows, inputs], weights [outputs, inputs] and out [rows, outputs] of kind 0 (float) or 1 (bfloat16).
void fas_dense(int kind, const void* x, int rows, i64 inputs, const void* weights, i64 outputs, const float* bias, void* out,
               int threads) {
  if (kind == 0)
    multiply((const float*)x, rows, inputs, (const float*)weights, outputs, bias, (float*)out, threads);
  else
    multiply((const bf16*)x, rows, inputs, (const bf16*)weights, outputs, bias, (bf16*)out, threads);
}
}
