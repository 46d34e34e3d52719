// See sampler.h for what is computed. How: one vector pass over the row finds the maximum of every group of 128 logits
// (and NaNs). Truncation looks only into groups whose maximum can matter and ends in a single cut (logit, id); the draw
// is one vector pass over the groups above the cut. Nothing is ever sorted but what was asked for as top logprobs.
#include "sampler.h"

#include "sampler_passes.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>

namespace {

using namespace headrace;

constexpr double kGreedyBelow = 1e-5;
constexpr int kBisections = 8;  // narrows the band of candidates to about 1/256 of the logits' range
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Scratch {
  float* group_max;       // [groups]
  float* ordered_max;     // [groups], for selection
  double* group_mass;     // [groups]
  Candidate* candidates;  // [vocab]
  int32_t* counts;        // [vocab], all zero between calls
};

struct Row {
  const float* logits;
  int32_t vocab;
  int32_t groups;
  float max;
  Scratch scratch;
};

inline size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

Scratch carve(void* memory, int32_t vocab) {
  const size_t groups = group_count(vocab);
  char* at = static_cast<char*>(memory);
  auto take = [&at](size_t bytes) {
    char* begin = at;
    at += padded(bytes);
    return static_cast<void*>(begin);
  };
  Scratch scratch;
  scratch.group_max = static_cast<float*>(take(groups * sizeof(float)));
  scratch.ordered_max = static_cast<float*>(take(groups * sizeof(float)));
  scratch.group_mass = static_cast<double*>(take(groups * sizeof(double)));
  scratch.candidates = static_cast<Candidate*>(take(vocab * sizeof(Candidate)));
  scratch.counts = static_cast<int32_t*>(take(vocab * sizeof(int32_t)));
  return scratch;
}

// One weight of the same distribution, in double: for the few tokens that are looked at one by one.
inline double weight(float logit, float max, float inverse_temperature) {
  return std::exp(static_cast<double>((logit - max) * inverse_temperature));
}

// ------------------------------------------------------------------------------------------------------- selection

int open_row(const float* logits, int32_t vocab, void* memory, Row* row) {
  *row = {logits, vocab, group_count(vocab), -kInfinity, carve(memory, vocab)};
  if (!find_group_max(logits, vocab, row->scratch.group_max)) return HR_SAMPLE_NOT_FINITE;
  for (int32_t g = 0; g < row->groups; ++g) row->max = std::max(row->max, row->scratch.group_max[g]);
  if (row->max == kInfinity) return HR_SAMPLE_NOT_FINITE;
  return row->max == -kInfinity ? HR_SAMPLE_ALL_BANNED : HR_SAMPLE_OK;
}

int32_t arg_max(const Row& row) {
  int32_t g = 0;
  while (row.scratch.group_max[g] != row.max) ++g;
  int32_t id = g * kGroup;
  while (row.logits[id] != row.max) ++id;
  return id;
}

// Collects every token with a logit of at least `floor` and below `ceiling`, in id order; returns how many.
int32_t gather(const Row& row, float floor, float ceiling = kInfinity) {
  Candidate* out = row.scratch.candidates;
  int32_t n = 0;
  for (int32_t g = 0; g < row.groups; ++g) {
    if (row.scratch.group_max[g] < floor) continue;
    const int32_t end = std::min(row.vocab, (g + 1) * kGroup);
    for (int32_t id = g * kGroup; id < end; ++id) {
      out[n] = {row.logits[id], id};
      n += row.logits[id] >= floor && row.logits[id] < ceiling;
    }
  }
  return n;
}

// A logit that at least `count` tokens reach, close to the count-th largest: as many groups have a maximum that high.
float floor_for(const Row& row, int32_t count, float floor) {
  if (count > row.groups) return floor;
  float* ordered = row.scratch.ordered_max;
  std::copy(row.scratch.group_max, row.scratch.group_max + row.groups, ordered);
  std::nth_element(ordered, ordered + count - 1, ordered + row.groups, std::greater<float>());
  return std::max(floor, ordered[count - 1]);
}

// Puts the first `count` tokens of the order, of those with a logit of at least `floor`, at the start of the
// candidates, the last of them at the end; returns how many there are.
int32_t select_first(const Row& row, int32_t count, float floor) {
  Candidate* list = row.scratch.candidates;
  const int32_t n = gather(row, floor_for(row, std::min(count, row.vocab), floor));
  const int32_t kept = std::min(count, n);
  if (kept > 0) std::nth_element(list, list + kept - 1, list + n, before);
  return kept;
}

double candidate_mass(const Row& row, int32_t begin, int32_t end, float inverse_temperature) {
  double mass = 0.0;
  for (int32_t i = begin; i < end; ++i)
    mass += weight(row.scratch.candidates[i].logit, row.max, inverse_temperature);
  return mass;
}

// The last token of the shortest prefix, in the order, of the first n candidates whose mass reaches `wanted`: halving by
// nth_element, so linear in n. The whole mass is known to reach it.
Candidate last_reaching(const Row& row, int32_t n, double wanted, float inverse_temperature) {
  Candidate* list = row.scratch.candidates;
  int32_t begin = 0, end = n;
  while (end - begin > 1) {
    const int32_t middle = begin + (end - begin) / 2;
    std::nth_element(list + begin, list + middle, list + end, before);
    const double upper = candidate_mass(row, begin, middle, inverse_temperature);
    if (upper >= wanted) {
      end = middle;
    } else {
      wanted -= upper;
      begin = middle;
    }
  }
  return list[begin];
}

double mass_from(const Row& row, float floor, float inverse_temperature) {
  return find_group_mass(row.logits, row.vocab, row.scratch.group_max, row.max, inverse_temperature, {floor, INT32_MAX},
                         row.scratch.group_mass);
}

// Top-p without top-k. Most often the few most likely tokens hold the mass; else the floor is bisected by whole passes
// until the band of logits that the cut lies in is narrow.
Candidate nucleus_cut(const Row& row, double top_p, Candidate cut, float inverse_temperature) {
  const double wanted = top_p * mass_from(row, cut.logit, inverse_temperature);
  float above = floor_for(row, 64, cut.logit);  // `above` and up is too little; `below` and up is enough
  const int32_t n = gather(row, above);
  if (candidate_mass(row, 0, n, inverse_temperature) >= wanted) return last_reaching(row, n, wanted, inverse_temperature);
  float below = std::max(cut.logit, row.max - 90.0f / inverse_temperature);  // under this, weights are 0
  double mass_above = mass_from(row, above, inverse_temperature);
  for (int i = 0; i < kBisections; ++i) {
    const float middle = below + 0.5f * (above - below);
    if (middle <= below || middle >= above) break;
    const double mass = mass_from(row, middle, inverse_temperature);
    if (mass >= wanted) {
      below = middle;
    } else {
      above = middle;
      mass_above = mass;
    }
  }
  const int32_t band = gather(row, below, above);
  if (band == 0) return cut;  // top_p so close to 1 that rounding decides: all are kept
  return last_reaching(row, band, wanted - mass_above, inverse_temperature);
}

// Min-p, top-k and top-p as one cut.
Candidate find_cut(const Row& row, const hr_sampling& s, float inverse_temperature) {
  Candidate cut = kKeepAll;
  if (s.min_p > 0.0) {
    const double bound = row.max + s.temperature * std::log(s.min_p);
    float floor = static_cast<float>(bound);
    if (floor < bound) floor = std::nextafter(floor, kInfinity);
    cut.logit = std::min(std::max(floor, -FLT_MAX), row.max);
  }
  if (s.top_k > 0 && s.top_k < row.vocab) {
    const int32_t kept = select_first(row, s.top_k, cut.logit);
    if (kept == s.top_k) cut = row.scratch.candidates[kept - 1];
    if (s.top_p >= 1.0) return cut;
    const double mass = candidate_mass(row, 0, kept, inverse_temperature);
    return last_reaching(row, kept, s.top_p * mass, inverse_temperature);
  }
  return s.top_p < 1.0 ? nucleus_cut(row, s.top_p, cut, inverse_temperature) : cut;
}

// ------------------------------------------------------------------------------------------------------------ draw

// Philox 4x32-10 with counter (position, 0, 0) and key (seed); the first 53 bits as a number in [0, 1).
double uniform(uint64_t seed, uint64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t k[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)};
    std::copy(next, next + 4, c);
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return ((c[0] >> 5) * 67108864.0 + (c[1] >> 6)) * 0x1p-53;
}

// The first token, in id order and among those kept, at which the cumulative mass passes u times the whole.
int32_t draw(const Row& row, Candidate cut, float inverse_temperature, double u) {
  const double* mass = row.scratch.group_mass;
  double left = u * find_group_mass(row.logits, row.vocab, row.scratch.group_max, row.max, inverse_temperature, cut,
                                    row.scratch.group_mass);
  int32_t group = 0;
  for (int32_t g = 0; g < row.groups; ++g) {
    if (mass[g] == 0.0) continue;
    group = g;
    if (left < mass[g]) break;
    left -= mass[g];
  }
  int32_t last = -1;  // rounding may leave a little over: then the group's last token with any mass is the one
  const int32_t end = std::min(row.vocab, (group + 1) * kGroup);
  for (int32_t id = group * kGroup; id < end; ++id) {
    const Candidate token = {row.logits[id], id};
    if (before(cut, token)) continue;
    const double w = weight(token.logit, row.max, inverse_temperature);
    if (w < FLT_MIN) continue;
    last = id;
    if (left < w) break;
    left -= w;
  }
  return last;
}

// ---------------------------------------------------------------------------------------------------- adjustments

bool ids_valid(const int32_t* ids, int32_t n, int32_t vocab) {
  for (int32_t i = 0; i < n; ++i)
    if (ids[i] < 0 || ids[i] >= vocab) return false;
  return true;
}

int check(const hr_sampling& s, int32_t vocab) {
  const bool numbers_ok = s.temperature >= 0.0 && s.top_p > 0.0 && s.min_p >= 0.0 && s.min_p <= 1.0 &&
                          s.repetition_penalty > 0.0 && std::isfinite(s.repetition_penalty) && std::isfinite(s.presence_penalty) &&
                          std::isfinite(s.frequency_penalty) && s.top_k >= 0;
  const bool counts_ok = s.history_length >= 0 && s.bias_count >= 0 && s.prompt_length >= 0 &&
                         (s.prompt_length <= s.history_length || s.history_length == 0) &&
                         (s.mask == nullptr || s.mask_words >= 0) && std::isfinite(s.green_delta);
  for (int32_t i = 0; i < s.bias_count; ++i)
    if (!(s.bias_values[i] < HUGE_VAL)) return HR_SAMPLE_BAD_PARAM;
  if (!numbers_ok || !counts_ok) return HR_SAMPLE_BAD_PARAM;
  const bool ids_ok = ids_valid(s.history, s.history_length, vocab) && ids_valid(s.bias_ids, s.bias_count, vocab) &&
                      ids_valid(s.allowed, s.allowed_count, vocab);
  return ids_ok ? HR_SAMPLE_OK : HR_SAMPLE_BAD_ID;
}

// Each token of the history once, whatever its number of occurrences: counts[id] holds 1 + occurrences in the output.
void penalise(float* logits, const hr_sampling& s, int32_t* counts) {
  for (int32_t i = 0; i < s.history_length; ++i) {
    int32_t& count = counts[s.history[i]];
    count += (count == 0) + (i >= s.prompt_length);
  }
  for (int32_t i = 0; i < s.history_length; ++i) {
    const int32_t id = s.history[i];
    if (counts[id] == 0) continue;  // done at an earlier occurrence
    const int32_t in_output = counts[id] - 1;
    counts[id] = 0;
    double z = logits[id];
    z = z > 0.0 ? z / s.repetition_penalty : z * s.repetition_penalty;
    if (in_output > 0) z -= s.frequency_penalty * in_output + s.presence_penalty;
    logits[id] = static_cast<float>(z);
  }
}

void adjust(float* logits, int32_t vocab, const hr_sampling& s, const Scratch& scratch) {
  if (s.allowed_count >= 0) {
    for (int32_t i = 0; i < s.allowed_count; ++i) scratch.counts[s.allowed[i]] = 1;
    for (int32_t id = 0; id < vocab; ++id)
      if (!scratch.counts[id]) logits[id] = -kInfinity;
    for (int32_t i = 0; i < s.allowed_count; ++i) scratch.counts[s.allowed[i]] = 0;
  }
  for (int32_t i = 0; i < s.bias_count; ++i)
    logits[s.bias_ids[i]] = static_cast<float>(logits[s.bias_ids[i]] + s.bias_values[i]);
  if (s.mask) apply_mask(logits, vocab, s.mask, s.mask_words);
  if (s.green_below) raise_green(logits, vocab, s.green_seed, s.green_below, s.green_delta);
  if (s.repetition_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0)
    penalise(logits, s, scratch.counts);
}

void report(const Row& row, int32_t token, int32_t count, hr_choice* out) {
  const double mass = find_group_mass(row.logits, row.vocab, row.scratch.group_max, row.max, 1.0f, kKeepAll,
                                      row.scratch.group_mass);
  const double log_total = row.max + std::log(mass);
  out->token = token;
  out->logprob = static_cast<float>(row.logits[token] - log_total);
  const bool first = row.logits[token] == row.max && token == arg_max(row);
  out->rank = first ? 1 : 1 + count_before(row.logits, row.vocab, {row.logits[token], token});
  out->top_count = count > 0 ? select_first(row, count, -FLT_MAX) : 0;
  Candidate* top = row.scratch.candidates;
  std::sort(top, top + out->top_count, before);
  for (int32_t i = 0; i < out->top_count; ++i) {
    out->top_ids[i] = top[i].id;
    out->top_logprobs[i] = static_cast<float>(top[i].logit - log_total);
  }
}

inline float inverse(double temperature) { return static_cast<float>(1.0 / temperature); }

}  // namespace

size_t hr_sampler_scratch_bytes(int32_t vocab) {
  const size_t groups = group_count(vocab);
  return 2 * padded(groups * sizeof(float)) + padded(groups * sizeof(double)) + padded(vocab * sizeof(Candidate)) +
         padded(vocab * sizeof(int32_t));
}

int hr_sample(float* logits, int32_t vocab, const hr_sampling* sampling, void* scratch, hr_choice* out) {
  const hr_sampling& s = *sampling;
  if (const int bad = check(s, vocab)) return bad;
  adjust(logits, vocab, s, carve(scratch, vocab));
  Row row;
  if (const int bad = open_row(logits, vocab, scratch, &row)) return bad;
  if (s.temperature < kGreedyBelow) {
    out->token = arg_max(row);
  } else {
    const float inverse_temperature = inverse(s.temperature);
    out->token = draw(row, find_cut(row, s, inverse_temperature), inverse_temperature, uniform(s.seed, s.position));
  }
  out->top_count = 0;
  if (s.logprobs >= 0) report(row, out->token, s.logprobs, out);
  return HR_SAMPLE_OK;
}

int hr_token_logprobs(const float* logits, int32_t vocab, int32_t token, int32_t count, void* scratch, hr_choice* out) {
  if (token < 0 || token >= vocab) return HR_SAMPLE_BAD_ID;
  Row row;
  if (const int bad = open_row(logits, vocab, scratch, &row)) return bad;
  report(row, token, count, out);
  return HR_SAMPLE_OK;
}

int hr_sampling_cut(const float* logits, int32_t vocab, const hr_sampling* sampling, void* scratch, float* logit, int32_t* id) {
  if (const int bad = check(*sampling, vocab)) return bad;
  Row row;
  if (const int bad = open_row(logits, vocab, scratch, &row)) return bad;
  Candidate cut = {row.max, arg_max(row)};
  if (sampling->temperature >= kGreedyBelow) cut = find_cut(row, *sampling, inverse(sampling->temperature));
  *logit = cut.logit;
  *id = cut.id;
  return HR_SAMPLE_OK;
}

uint32_t hr_green(uint64_t seed, int32_t token) { return green_hash(seed, static_cast<uint32_t>(token)); }

const char* hr_sampling_error(int code) {
  switch (code) {
    case HR_SAMPLE_OK: return "ok";
    case HR_SAMPLE_NOT_FINITE: return "the model produced a logit that is NaN or infinite";
    case HR_SAMPLE_ALL_BANNED: return "logit_bias, allowed_token_ids and what the answer is held to leave no token to choose";
    case HR_SAMPLE_BAD_ID: return "a token id is outside the vocabulary";
    default: return "a sampling parameter is out of its limits";
  }
}
