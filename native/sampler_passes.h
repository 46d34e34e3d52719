// The sampler's three vector passes over a row of logits, and the order of tokens that they share with it.
//
// Compiled for three instruction sets and resolved once by the loader, with the same bits from each.
#pragma once

#include <cfloat>
#include <cstdint>

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

// How many tokens come before `token` in the order.
int32_t count_before(const float* logits, int32_t vocab, Candidate token);

}  // namespace headrace
