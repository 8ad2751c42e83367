// Operands of integer products: what sites hand on, in units (fas.runtime.products).

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

}  // namespace

extern "C" {

void fas_count(const float* x, i64 begin, i64 end, i64 width, const float* unit, std::uint8_t* out, int threads) {
  shared(begin, end, threads, [&](i64 from, i64 to, i64) { count(x, from, to, width, unit, out); });
}
}
