// The sampler's vector passes over a row of logits, and the order of tokens that they share with it.
//
// Compiled for three instruction sets and resolved once by the loader, with the same bits from each.
#pragma once

#include <cfloat>
#include <cstdint>
#include <initializer_list>

namespace headrace {

constexpr int32_t kGroup = 128;  // logits per group: the grain in which the sampler skips what cannot matter

inline int32_t group_count(int32_t vocab) { return (vocab + kGroup - 1) / kGroup; }

struct Candidate {
  float logit;
  int32_t id;
};

// The order of tokens: more likely first, lowest id among equals. Total, so every prefix is a unique set.
inline bool before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// As a cut, the last token kept: everything finite is.
constexpr Candidate kKeepAll = {-FLT_MAX, INT32_MAX};

// Writes every group's maximum; false if any logit is NaN.
bool find_group_max(const float* logits, int32_t vocab, float* group_max);

// Writes the mass, sum of exp((logit - max) * inverse_temperature), of what each group keeps; returns the total.
double find_group_mass(const float* logits, int32_t vocab, const float* group_max, float max, float inverse_temperature,
                       Candidate cut, double* group_mass);

// Bans every token whose bit is not set, and those beyond the mask's words.
void apply_mask(float* logits, int32_t vocab, const uint32_t* mask, int32_t words);

// Adds `delta` to the logits of all green tokens.
void raise_green(float* logits, int32_t vocab, uint64_t seed, uint32_t below, double delta);

// Two rounds of a 32-bit mixer (Wellons, "Prospecting for hash functions", lowbias32), half of the seed before each.
inline uint32_t green_hash(uint64_t seed, uint32_t token) {
  uint32_t x = token + static_cast<uint32_t>(seed);
  for (uint32_t more : {static_cast<uint32_t>(seed >> 32), uint32_t{0}}) {
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    x ^= x >> 16;
    x += more;
  }
  return x;
}

// How many tokens come before `token` in the order.
int32_t count_before(const float* logits, int32_t vocab, Candidate token);

}  // namespace headrace
