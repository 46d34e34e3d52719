// See sampler_passes.h. Written with the compiler's vector types, which every target lowers to what it has: the order of
// every sum is spelled out, and multiplications and additions are not contracted (-ffp-contract=off).
#include "sampler_passes.h"

#include <cstdlib>
#include <cstring>
#include <limits>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define HR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define HR_CLONES
#endif
#define HR_INLINE static inline __attribute__((always_inline))

namespace headrace {
namespace {

constexpr int kLanes = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

HR_INLINE void load(Floats& to, const float* from) { std::memcpy(&to, from, sizeof(to)); }

// A group of 128 logits: in place, or for the last one a copy padded with -inf.
HR_INLINE const float* group_at(const float* logits, int32_t vocab, int32_t group, float* buffer) {
  const int32_t begin = group * kGroup;
  if (begin + kGroup <= vocab) return logits + begin;
  for (int i = 0; i < kGroup; ++i) buffer[i] = begin + i < vocab ? logits[begin + i] : -kInfinity;
  return buffer;
}

// exp(x) for x <= 0, to 2 ulp; 0 below -87. Cody-Waite reduction by ln 2, degree 6 polynomial, exponent by integer add.
HR_INLINE void exp_nonpositive(Floats& x) {
  const Floats magic = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Ints vanishes = x < -87.0f;
  const Floats shifted = x * 1.44269504f + magic;
  const Floats n = shifted - magic;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = r * 1.3888889e-3f + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints bits = (Ints)p + (((Ints)shifted) << 23);
  x = (Floats)(bits & ~vanishes);
}

// Sum of the 16 lanes in one fixed order.
HR_INLINE float sum_lanes(const Floats& v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof(v));
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
  return lane[0];
}

HR_INLINE float max_lanes(const Floats& v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof(v));
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] = lane[i] > lane[i + step] ? lane[i] : lane[i + step];
  return lane[0];
}

}  // namespace

HR_CLONES bool find_group_max(const float* logits, int32_t vocab, float* group_max) {
  float buffer[kGroup];
  Ints ordered = Ints{} - 1;
  for (int32_t g = 0; g < group_count(vocab); ++g) {
    const float* at = group_at(logits, vocab, g, buffer);
    Floats best = Floats{} - kInfinity;
    for (int i = 0; i < kGroup; i += kLanes) {
      Floats x;
      load(x, at + i);
      ordered &= x == x;
      best = x > best ? x : best;
    }
    group_max[g] = max_lanes(best);
  }
  for (int i = 0; i < kLanes; ++i)
    if (!ordered[i]) return false;
  return true;
}

HR_CLONES double find_group_mass(const float* logits, int32_t vocab, const float* group_max, float max,
                                 float inverse_temperature, Candidate cut, double* group_mass) {
  float buffer[kGroup];
  double total = 0.0;
  for (int32_t g = 0; g < group_count(vocab); ++g) {
    group_mass[g] = 0.0;
    if (group_max[g] < cut.logit) continue;
    const float* at = group_at(logits, vocab, g, buffer);
    Floats sum = {};
    Ints ids = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + g * kGroup;
    for (int i = 0; i < kGroup; i += kLanes, ids += kLanes) {
      Floats x;
      load(x, at + i);
      const Ints kept = (x > cut.logit) | ((x == cut.logit) & (ids <= cut.id));
      x = (x - max) * inverse_temperature;
      exp_nonpositive(x);
      sum += (Floats)((Ints)x & kept);
    }
    group_mass[g] = sum_lanes(sum);
    total += group_mass[g];
  }
  return total;
}

HR_CLONES int32_t count_before(const float* logits, int32_t vocab, Candidate token) {
  float buffer[kGroup];
  Ints count = {};
  for (int32_t g = 0; g < group_count(vocab); ++g) {
    const float* at = group_at(logits, vocab, g, buffer);
    Ints ids = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + g * kGroup;
    for (int i = 0; i < kGroup; i += kLanes, ids += kLanes) {
      Floats x;
      load(x, at + i);
      count -= (x > token.logit) | ((x == token.logit) & (ids < token.id));
    }
  }
  int32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += count[i];
  return total;
}

}  // namespace headrace
