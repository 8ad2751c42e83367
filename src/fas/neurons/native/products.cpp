// Operands of integer products: what sites hand on, in units (fas.runtime.products).

#include "common.h"

namespace {

// Which multiple of its unit each value is, plus an offset (shift: and a half): operands of integer products.
template <class X>
void count(const X* x, i64 begin, i64 end, i64 width, const float* units, float shift, std::uint8_t* out) {
  tiles(begin, end, width, [&](i64 at, i64 channel, int count) {
    const float* __restrict unit = units + channel;
    const X* __restrict from = x + at;
    std::uint8_t* __restrict to = out + at;
    for (int i = 0; i < count; ++i) to[i] = std::uint8_t(int(std::floor(wide(from[i]) / unit[i] + shift)));
  });
}

}  // namespace

extern "C" {

void fas_count(int kind, const void* x, i64 begin, i64 end, i64 width, const float* unit, float shift, std::uint8_t* out,
               int threads) {
  shared(begin, end, threads, [&](i64 from, i64 to, i64) {
    if (kind == 0)
      count((const float*)x, from, to, width, unit, shift, out);
    else
      count((const bf16*)x, from, to, width, unit, shift, out);
  });
}
}
