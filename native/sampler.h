// Choosing one token from one row of logits: the native half of headrace.types.RowSampling.
//
// Order of the steps (vLLM v1's, docs.vllm.ai, vllm.v1.sample.sampler): allowed ids -> bias -> mask -> green list ->
// repetition, frequency and presence penalty -> [logprobs are taken here] -> arg-max, or temperature -> min-p -> top-k ->
// top-p -> draw.
//
// Tokens are ordered by (logit descending, id ascending), so every set below is unique:
//   min-p  keeps tokens whose probability is at least min_p times that of the most likely one;
//   top-k  keeps the first k of what is left;
//   top-p  keeps the shortest prefix of what is left whose share of its probability reaches top_p, never none.
// The draw inverts the cumulative distribution in id order at one uniform number of 53 bits: Philox 4x32-10 (Salmon et
// al., "Parallel random numbers: as easy as 1, 2, 3", SC'11) with the seed as key and the position as counter.
//
// Every result is a pure function of (logits, parameters), the same bits on every instruction set: sums run in one fixed
// order and nothing is contracted to FMA. `src/headrace/backends/reference/sampling.py` says the same in NumPy.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define HR_SAMPLER_EXPORT __declspec(dllexport)
#else
#define HR_SAMPLER_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// RowSampling, field for field. Pointers are read during the call only; a count of 0 allows a null pointer.
typedef struct hr_sampling {
  double temperature;  // below 1e-5 (vLLM's bound): arg-max, lowest id among equals
  double top_p;        // 1 or more: off
  double min_p;        // 0: off
  double repetition_penalty;  // 1: off; > 0. Divides a positive logit, multiplies a negative one
  double presence_penalty;    // 0: off; subtracted once for a token of the output
  double frequency_penalty;   // 0: off; subtracted for each occurrence in the output
  uint64_t seed;
  uint64_t position;
  int32_t top_k;  // 0: off
  int32_t logprobs;  // -1: off; n >= 0: the chosen token and the n most likely
  const int32_t* history;  // prompt, then output
  int32_t history_length;
  int32_t prompt_length;
  const int32_t* bias_ids;
  const double* bias_values;  // -inf bans
  int32_t bias_count;
  int32_t allowed_count;  // -1: all tokens are allowed
  const int32_t* allowed;
  const uint32_t* mask;  // null: all may come; else bit t % 32 of word t / 32, and what lies beyond may not
  uint64_t green_seed;   // see hr_green
  double green_delta;    // added to the logits of green tokens
  uint32_t green_below;  // 0: no green list
  int32_t mask_words;
} hr_sampling;

// What came out. `top_ids` and `top_logprobs` are the caller's, with room for as many entries as asked for; `top_count`
// says how many were written (banned tokens are left out, so it can be fewer).
typedef struct hr_choice {
  int32_t* top_ids;
  float* top_logprobs;
  int32_t token;
  int32_t rank;   // 1 = most likely
  float logprob;
  int32_t top_count;
} hr_choice;

enum {
  HR_SAMPLE_OK = 0,
  HR_SAMPLE_NOT_FINITE = 1,  // a logit is NaN or +inf
  HR_SAMPLE_ALL_BANNED = 2,  // bias, allowed ids or -inf logits leave no token
  HR_SAMPLE_BAD_ID = 3,      // a history, bias or allowed id is outside the vocabulary
  HR_SAMPLE_BAD_PARAM = 4,   // a number is NaN or outside the limits written above
};

// Bytes of scratch that the calls below need for a vocabulary. Aligned to 64 bytes, zeroed once by the caller, then
// handed from call to call (each leaves it as it needs it); one scratch per thread.
HR_SAMPLER_EXPORT size_t hr_sampler_scratch_bytes(int32_t vocab);

// Chooses a token; overwrites `logits` [vocab] with the adjusted ones. Returns an HR_SAMPLE_ code.
HR_SAMPLER_EXPORT int hr_sample(float* logits, int32_t vocab, const hr_sampling* sampling, void* scratch, hr_choice* out);

// Logprob and rank of a given token with the `count` most likely beside it (prompt logprobs). Logits are only read.
HR_SAMPLER_EXPORT int hr_token_logprobs(const float* logits, int32_t vocab, int32_t token, int32_t count, void* scratch,
                                        hr_choice* out);

// The last token, in the order above, that min-p, top-k and top-p keep: truncation alone, for tests. The logits are
// taken as already adjusted. With temperature 0 the last kept is the arg-max.
HR_SAMPLER_EXPORT int hr_sampling_cut(const float* logits, int32_t vocab, const hr_sampling* sampling, void* scratch,
                                      float* logit, int32_t* id);

// The hash by which a token is green: if it is less than `green_below` (headrace.watermark says the same in Python).
HR_SAMPLER_EXPORT uint32_t hr_green(uint64_t seed, int32_t token);

// What a code means, in words.
HR_SAMPLER_EXPORT const char* hr_sampling_error(int code);

#ifdef __cplusplus
}
#endif
