// All timesteps of a neuron in one pass over memory: a tile of channels goes through time while it lies in the cache.
// The same operations in the same order as in PyTorch (fas.neurons), so that forward results are equal bit by bit; compile
// with -ffp-contract=off. Rows are [T, size], size = tokens * width, of float or bfloat16; constants are float, one a channel.
// Each call computes columns [begin, end), shared out among threads.

#include "common.h"

#include <type_traits>

namespace {

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

  // The same with fewer steps that wait for each other, where `is_regular`: both moves are made before it is known which is taken.
  inline vec regular(vec target, vec& state, vec offset, vec low, vec high, bool tells) const {
#if defined(__AVX512F__)
    const __m512 u = (__m512)((target - state) * inverse + offset), up = (__m512)(state + k), down = (__m512)(state - k);
    const __mmask16 may_rise = _mm512_cmp_ps_mask(up, (__m512)high, _CMP_LE_OQ);
    const __mmask16 may_sink = _mm512_cmp_ps_mask(down, (__m512)low, _CMP_GE_OQ);
    const __mmask16 rises = _mm512_mask_cmp_ps_mask(may_rise, u, (__m512)upper, _CMP_GE_OQ);
    const __mmask16 sinks = _mm512_mask_cmp_ps_mask(may_sink, u, (__m512)lower, _CMP_LT_OQ);
    const __mmask16 lost = waits ? 0 : _mm512_cmp_ps_mask(u, u, _CMP_UNORD_Q);  // NaN
    const __m512 moved = _mm512_mask_mov_ps(_mm512_mask_mov_ps((__m512)state, rises, up), sinks, down);
    state = (vec)_mm512_mask_mov_ps(moved, lost, u);
    if (!tells) return vec{};
    const __m512 spike = _mm512_maskz_mov_ps(rises, _mm512_set1_ps(1.0f));
    return (vec)_mm512_mask_mov_ps(_mm512_mask_mov_ps(spike, sinks, _mm512_set1_ps(-1.0f)), lost, u);
#else
    return (*this)(target, state, offset, low, high);
#endif
  }
};

// States between the limits and moves upwards: then a move can only leave the limits on its own side.
inline bool is_regular(Constants by, i64 width, Schedule plan) {
  bool regular = true;
  for (int m = 0; m < plan.times * plan.each; ++m) regular &= plan.steps[m] > 0.0f && plan.zones[m] >= 0.0f;
  for (i64 c = 0; c < (by.start ? width : 0); ++c) regular &= by.start[c] >= plan.low && by.start[c] <= plan.high;
  return regular && (by.start || (plan.low <= 0.0f && plan.high >= 0.0f));
}

template <bool REGULAR, class V>
void track(const V* rows, i64 size, i64 begin, i64 end, i64 width, Constants by, Schedule plan, V* out, float* spikes,
           bool stream) {
  const vec low = all(plan.low), high = all(plan.high);
  std::vector<Micro> micros;
  for (int m = 0; m < plan.times * plan.each; ++m) micros.emplace_back(plan.steps[m], plan.zones[m]);
  vectors(begin, end, width, size, rows, plan.times, by, out, spikes, plan.times * plan.each, stream,
          [&](const V* row, i64 stride, pack unit, pack offset, pack state, V* to, i64 to_stride, float* fired, bool past) {
            for (int t = 0, micro = 0; t < plan.times; ++t) {
              pack target;
              EACH(v) __builtin_prefetch(row + t * stride + v * LANES + AHEAD);
              EACH(v) target.at[v] = within(load(row + t * stride + v * LANES) / unit.at[v], low, high);
              for (int m = 0; m < plan.each; ++m, ++micro) {
                EACH(v) {
                  const Micro& step = micros[micro];
                  const vec spike = REGULAR ? step.regular(target.at[v], state.at[v], offset.at[v], low, high, fired)
                                            : step(target.at[v], state.at[v], offset.at[v], low, high);
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

template <class V>
void quantize_back(const V* grad, const V* x, i64 begin, i64 end, i64 width, const float* units, float low, float high,
                   V* by_x, float* by_unit) {
  tiles(begin, end, width, [&](i64 at, i64 channel, int count) {
    const float* __restrict unit = units + channel;
    const V *__restrict from = x + at, *__restrict all_given = grad + at;
    V* __restrict to = by_x + at;
    float* __restrict on_unit = by_unit + channel;
    for (int i = 0; i < count; ++i) {
      const float u = wide(from[i]) / unit[i], code = std::floor(u + 0.5f), given = wide(all_given[i]);
      const bool inside = u >= low && u <= high;
      const float clipped = code < low ? low : (code > high ? high : code);
      narrow(inside ? given : given * 0.0f, to[i]);
      on_unit[i] += given * (clipped - (inside ? u : 0.0f));
    }
  });
}

}  // namespace

// kind: 0 float, 1 bfloat16; pointers of constants are one float a channel; spikes may be null. What is summed over tokens is
// written to rows of their own, one a thread.
extern "C" {

int fas_lanes() { return LANES; }

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
  const bool regular = is_regular(by, width, plan);
  const auto tracked = [&](auto known, auto zero) {
    using V = decltype(zero);
    shared(begin, end, threads, [&](i64 from, i64 to, i64) {
      track<decltype(known)::value>((const V*)rows, size, from, to, width, by, plan, (V*)out, spikes, stream);
    });
  };
  const auto of = [&](auto zero) { regular ? tracked(std::true_type{}, zero) : tracked(std::false_type{}, zero); };
  kind == 0 ? of(float{}) : of(bf16{});
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

void fas_quantize_back(int kind, const void* grad, const void* x, i64 begin, i64 end, i64 width, const float* unit,
                       float low, float high, void* by_x, float* by_unit, int threads) {
  shared(begin, end, threads, [&](i64 from, i64 to, i64 number) {
    float* sums = by_unit + number * width;
    if (kind == 0)
      quantize_back((const float*)grad, (const float*)x, from, to, width, unit, low, high, (float*)by_x, sums);
    else
      quantize_back((const bf16*)grad, (const bf16*)x, from, to, width, unit, low, high, (bf16*)by_x, sums);
  });
}
}
