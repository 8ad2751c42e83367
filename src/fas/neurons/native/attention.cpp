// Attention of one new token a row behind a cache: keys and values are read once, where they lie (fas.runtime.decoding).

#include "common.h"

namespace {

// e^x to 2 units in the last place for x <= 0: powers of two times a polynomial (Cephes); below -87 it is 0.
inline vec exponential(vec x) {
  const mask tiny = x < all(-87.0f);
  x = pick(tiny, all(-87.0f), x);
  vec n = x * 1.44269504088896341f + 12582912.0f;  // rounds to nearest
  n = n - 12582912.0f;
  const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const mask power = (__builtin_convertvector(n, mask) + 127) << 23;
  return pick(tiny, vec{}, p * (vec)power);
}

// Products of q [width] with SIDE rows of keys, side by side.
constexpr int SIDE = 4;
template <int N, class X>
inline void products(const float* q, const X* keys, i64 stride, i64 width, float* out) {
  vec sums[N] = {};
  i64 d = 0;
  for (; d + LANES <= width; d += LANES) {
    const vec left = load(q + d);
    for (int n = 0; n < N; ++n) sums[n] = added(left, load(keys + n * stride + d), sums[n]);
  }
  for (int n = 0; n < N; ++n) out[n] = sum_of(sums[n]);
  for (; d < width; ++d)
    for (int n = 0; n < N; ++n) out[n] += q[d] * wide(keys[n * stride + d]);
}

// Adds to sums [width] as many rows of values, each times its share.
template <int N, class X>
inline void add(const float* shares, const X* values, i64 stride, i64 width, float* sums) {
  i64 d = 0;
  for (; d + LANES <= width; d += LANES) {
    vec sum = load(sums + d);
    for (int n = 0; n < N; ++n) sum = added(load(values + n * stride + d), all(shares[n]), sum);
    store(sum, sums + d, false);
  }
  for (; d < width; ++d)
    for (int n = 0; n < N; ++n) sums[d] += shares[n] * wide(values[n * stride + d]);
}

struct Shape {
  i64 rows, period, heads, groups, width;  // period: rows of keys that lie in time, the same for all timesteps; groups: heads that share keys
};
template <class X>
struct Operand {
  const X* at;
  i64 row, head, token;
  const X* of(i64 r, i64 h) const { return at + r * row + h * head; }
};
template <class X>
struct Part {  // of the tokens: those that are the same in all timesteps, or those that are not
  Operand<X> keys, values;
  i64 tokens;
};
struct Hidden {
  const float* at;  // added to scores, or null
  i64 row, head, token;
};

template <class X>
void attend(const Operand<X>& query, const Part<X>& prefix, const Part<X>& past, const Part<X>& fresh, const Hidden& hidden, Shape shape, float scale,
            X* out, i64 begin, i64 end) {
  const i64 tokens = prefix.tokens + past.tokens + fresh.tokens, width = shape.width, timesteps = shape.rows / shape.period;
  std::vector<float> scores(std::size_t((tokens + LANES - 1) / LANES * LANES));
  std::vector<float> sums((std::size_t)width), q((std::size_t)width);
  for (i64 index = begin; index < end; ++index) {  // all timesteps of a head, then the next one: its past stays near
    const i64 b = index / timesteps / shape.heads, h = index / timesteps % shape.heads, kept = h / shape.groups;
    const i64 r = index % timesteps * shape.period + b;
    const X* asked = query.of(r, h);
    for (i64 d = 0; d < width; ++d) q[d] = wide(asked[d]) * scale;
    float* score = scores.data();
    const auto ask = [&](const Part<X>& part, i64 row) {
      const X* k = part.keys.of(row, kept);
      const i64 next = part.keys.token;
      i64 s = 0;
      for (; s + SIDE <= part.tokens; s += SIDE) products<SIDE>(q.data(), k + s * next, next, width, score + s);
      for (; s < part.tokens; ++s) products<1>(q.data(), k + s * next, next, width, score + s);
      score += part.tokens;
    };
    ask(prefix, 0);
    ask(past, b);
    ask(fresh, r);
    float largest = -INFINITY;
    for (i64 s = 0; s < tokens; ++s) {
      const i64 own = s - prefix.tokens;  // nothing hides the prefix
      if (hidden.at && own >= 0) scores[s] += hidden.at[r * hidden.row + h * hidden.head + own * hidden.token];
      largest = std::max(largest, scores[s]);
    }
    std::fill(scores.begin() + tokens, scores.end(), -INFINITY);
    const float top = largest == -INFINITY ? 0.0f : largest;
    vec total{};
    for (std::size_t s = 0; s < scores.size(); s += LANES) {
      const vec e = exponential(load(&scores[s]) - top);
      store(e, &scores[s], false);
      total += e;
    }
    const float all_of = sum_of(total), share = all_of > 0 ? 1.0f / all_of : 0.0f;
    std::fill(sums.begin(), sums.end(), 0.0f);
    const float* each = scores.data();
    const auto answer = [&](const Part<X>& part, i64 row) {
      const X* v = part.values.of(row, kept);
      const i64 next = part.values.token;
      i64 s = 0;
      for (; s + SIDE <= part.tokens; s += SIDE) add<SIDE>(each + s, v + s * next, next, width, sums.data());
      for (; s < part.tokens; ++s) add<1>(each + s, v + s * next, next, width, sums.data());
      each += part.tokens;
    };
    answer(prefix, 0);
    answer(past, b);
    answer(fresh, r);
    for (i64 d = 0; d < width; ++d) narrow(sums[d] * share, out[(r * shape.heads + h) * width + d]);
  }
}

template <class X>
Operand<X> operand(const void* at, const i64* strides) {
  return {(const X*)at, strides[0], strides[1], strides[2]};
}

template <class X>
void attend(const void* query, const void* const* at, const float* hidden, const i64* strides, const i64* tokens, Shape shape,
            float scale, void* out, int threads) {
  const Operand<X> q = operand<X>(query, strides);
  const Part<X> past{operand<X>(at[0], strides + 3), operand<X>(at[1], strides + 6), tokens[0]};
  const Part<X> fresh{operand<X>(at[2], strides + 9), operand<X>(at[3], strides + 12), tokens[1]};
  const Part<X> prefix{operand<X>(at[4], strides + 15), operand<X>(at[5], strides + 18), tokens[2]};
  const Hidden mask_of{hidden, strides[21], strides[22], strides[23]};
  const i64 pairs = shape.rows * shape.heads;
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      const i64 count = omp_get_num_threads(), number = omp_get_thread_num();
      attend<X>(q, prefix, past, fresh, mask_of, shape, scale, (X*)out, pairs * number / count, pairs * (number + 1) / count);
    }
    return;
  }
#endif
  attend<X>(q, prefix, past, fresh, mask_of, shape, scale, (X*)out, 0, pairs);
}

}  // namespace

extern "C" {

// Queries [rows, heads, width]; keys and values at[0..1] [period, heads / groups, tokens[0], width], the same for every row that
// is r modulo period, and behind them at[2..3] [rows, heads / groups, tokens[1], width]; all by strides (row, head, token). What
// hides is added to the scores. A row that sees nothing gets 0. Result [rows, heads, width].
void fas_attend(int kind, const void* query, const void* const* at, const float* hidden, const i64* strides, const i64* tokens,
                i64 rows, i64 period, i64 heads, i64 groups, i64 width, float scale, void* out, int threads) {
  const Shape shape{rows, period, heads, groups, width};
  if (kind == 0)
    attend<float>(query, at, hidden, strides, tokens, shape, scale, out, threads);
  else
    attend<bf16>(query, at, hidden, strides, tokens, shape, scale, out, threads);
}
}
