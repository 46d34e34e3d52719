// See sampler_passes.h. Plain loops over whole groups, which compilers vectorise for every target. Sums fold a group in
// halves, so their order is the same whatever the vector width, and nothing is contracted to FMA (-ffp-contract=off).
#include "sampler_passes.h"

#include <cstdlib>
#include <cstring>
#include <limits>

// No floating-point trap is ever enabled, so both sides of a choice may be computed: without this GCC keeps a branch.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-trapping-math")
#endif

// Resolved once by the loader. Clang and other C libraries get one version, for the target that the build names.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define HR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define HR_CLONES
#endif
#define HR_INLINE static inline __attribute__((always_inline))

namespace headrace {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A group of 128 logits: in place, or for the last one a copy padded with -inf.
HR_INLINE const float* group_at(const float* logits, int32_t vocab, int32_t group, float* buffer) {
  const int32_t begin = group * kGroup;
  if (begin + kGroup <= vocab) return logits + begin;
  for (int i = 0; i < kGroup; ++i) buffer[i] = begin + i < vocab ? logits[begin + i] : -kInfinity;
  return buffer;
}

// exp(x) for x <= 0, to 2 ulp; 0 below -87. Cody-Waite reduction by ln 2, degree 6 polynomial, exponent by integer add.
HR_INLINE float exp_nonpositive(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = r * 1.3888889e-3f + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t bits, exponent;
  std::memcpy(&bits, &p, 4);
  std::memcpy(&exponent, &shifted, 4);
  bits += exponent << 23;
  std::memcpy(&p, &bits, 4);
  return x < -87.0f ? 0.0f : p;
}

}  // namespace

HR_CLONES bool find_group_max(const float* logits, int32_t vocab, float* group_max) {
  float buffer[kGroup], fold[kGroup / 2];
  uint32_t unordered = 0;
  for (int32_t g = 0; g < group_count(vocab); ++g) {
    const float* at = group_at(logits, vocab, g, buffer);
    for (int i = 0; i < kGroup; ++i) unordered |= at[i] != at[i];
    for (int i = 0; i < kGroup / 2; ++i) fold[i] = at[i] > at[i + kGroup / 2] ? at[i] : at[i + kGroup / 2];
    for (int half = kGroup / 4; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) fold[i] = fold[i] > fold[i + half] ? fold[i] : fold[i + half];
    group_max[g] = fold[0];
  }
  return unordered == 0;
}

HR_CLONES double find_group_mass(const float* logits, int32_t vocab, const float* group_max, float max,
                                 float inverse_temperature, Candidate cut, double* group_mass) {
  float buffer[kGroup], mass[kGroup];
  // What is banned, -inf, has no mass anyway, unless times 0.
  const bool all = cut.logit == kKeepAll.logit && cut.id == kKeepAll.id && inverse_temperature > 0.0f;
  double total = 0.0;
  for (int32_t g = 0; g < group_count(vocab); ++g) {
    group_mass[g] = 0.0;
    if (group_max[g] < cut.logit) continue;
    const float* at = group_at(logits, vocab, g, buffer);
    if (all)
      for (int i = 0; i < kGroup; ++i) mass[i] = exp_nonpositive((at[i] - max) * inverse_temperature);
    for (int i = 0; i < kGroup && !all; ++i) {
      const uint32_t kept = (at[i] > cut.logit) | ((at[i] == cut.logit) & (g * kGroup + i <= cut.id));
      const float w = exp_nonpositive((at[i] - max) * inverse_temperature);
      mass[i] = kept ? w : 0.0f;
    }
    for (int half = kGroup / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) mass[i] += mass[i + half];
    group_mass[g] = mass[0];
    total += group_mass[g];
  }
  return total;
}

HR_CLONES void apply_mask(float* logits, int32_t vocab, const uint32_t* mask, int32_t words) {
  const int32_t whole = vocab / 32 < words ? vocab / 32 : words;
  for (int32_t w = 0; w < whole; ++w) {
    const uint32_t bits = mask[w];
    if (bits == UINT32_MAX) continue;
    float* at = logits + 32 * w;
    for (int i = 0; i < 32; ++i) at[i] = (bits >> i) & 1 ? at[i] : -kInfinity;
  }
  for (int32_t id = 32 * whole; id < vocab; ++id)
    if (id / 32 >= words || !((mask[id / 32] >> (id % 32)) & 1)) logits[id] = -kInfinity;
}

HR_CLONES void raise_green(float* logits, int32_t vocab, uint64_t seed, uint32_t below, double delta) {
  for (int32_t id = 0; id < vocab; ++id) {
    const float raised = static_cast<float>(logits[id] + delta);
    logits[id] = green_hash(seed, static_cast<uint32_t>(id)) < below ? raised : logits[id];
  }
}

HR_CLONES int32_t count_before(const float* logits, int32_t vocab, Candidate token) {
  int32_t count = 0;
  for (int32_t id = 0; id < vocab; ++id)
    count += (logits[id] > token.logit) | ((logits[id] == token.logit) & (id < token.id));
  return count;
}

}  // namespace headrace
