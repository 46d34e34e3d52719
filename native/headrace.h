// The C ABI of headrace's CPU engine: load weights once, then run whole model steps. Plain C, loaded with ctypes.
//
// One thread calls into a model at a time. Calls return 0, or -1 with a sentence in `error` (at most `error_size` bytes,
// always terminated). Pointers passed in are read during the call only.
#pragma once

#include <stdint.h>

#include "sampler.h"

#define HR_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hr_model hr_model;

// One rotary embedding: `pairs` angular frequencies; `interleaved` pairs dimensions (2j, 2j + 1), else (j, j + pairs).
typedef struct hr_rope {
  const float* inv_freq;
  int32_t pairs;
  int32_t interleaved;
  float magnitude;  // multiplies cos and sin
} hr_rope;

enum { HR_POST_NORMS = 1, HR_QK_NORM = 2, HR_QKV_BIAS = 4, HR_O_BIAS = 8, HR_GELU_TANH = 16, HR_TIED = 32 };

// headrace.weights.ModelSpec, field for field.
typedef struct hr_spec {
  int32_t vocab, hidden, layers, heads, kv_heads, head_dim, ffn, num_ropes;
  int32_t flags;
  float norm_eps, norm_offset, attention_scale, embedding_scale;
  float attention_softcap, logit_softcap;  // 0: none
  const int32_t* layer_rope;               // per layer: index into ropes
  const int32_t* layer_window;             // per layer: positions attended to; 0: all
  const hr_rope* ropes;
  // How the weights are kept, by [layer + 1][role] (0: the model's own tensors): the index in headrace.weights.DType of a
  // quantised type, which stays as it is, or of a float type, for tiles of the model's precision. Vectors are not kept so.
  const uint8_t* storage;
} hr_spec;

enum { HR_FLOAT32 = 0, HR_BFLOAT16 = 1 };
enum { HR_KV_SAME = 0, HR_KV_INT8 = 1 };  // keys and values: as the dtype, or 8 bits and a scale for each token's head

// What quantised weights are multiplied by: floats of the model's precision, which keeps every weight as it is, or integers
// of so many bytes, which puts the weights on 8-bit grids (native/integer.h).
enum { HR_FLOAT = 0, HR_INT8 = 1, HR_INT16 = 2 };

// Creates an empty model. `threads` includes the calling one; `isa` is a name from hr_isas, or null for the best.
// Null with a message on failure.
HR_EXPORT hr_model* hr_create(const hr_spec* spec, int32_t dtype, int32_t kv_dtype, int32_t activations, int32_t max_batch_tokens,
                              int32_t max_model_len, int32_t threads, const char* isa, char* error, int32_t error_size);
HR_EXPORT void hr_destroy(hr_model* model);

// Tensors by their canonical names (headrace.weights.spec), in this order.
enum {
  HR_EMBEDDING, HR_LM_HEAD, HR_NORM, HR_ATTENTION_NORM, HR_Q, HR_K, HR_V, HR_O, HR_Q_BIAS, HR_K_BIAS, HR_V_BIAS,
  HR_O_BIAS_, HR_Q_NORM, HR_K_NORM, HR_ATTENTION_POST_NORM, HR_FFN_NORM, HR_GATE, HR_UP, HR_DOWN, HR_FFN_POST_NORM,
  HR_ROLES
};

// A tensor as its file has it: [rows][columns], or [columns] with rows = 1. `storage` indexes headrace.weights.DType.
typedef struct hr_tensor {
  int32_t role, layer, storage;
  const void* data;
  int64_t bytes, rows, columns;
} hr_tensor;

// Packs tensors, all of them in parallel; a matrix that is to be kept as another, quantised type is quantised. Fails on a
// wrong shape or size, or a value that is not finite.
HR_EXPORT int32_t hr_set_tensors(hr_model* model, const hr_tensor* tensors, int32_t count, char* error,
                                 int32_t error_size);
// All tensors are set: fails naming the first that is missing.
HR_EXPORT int32_t hr_finish(hr_model* model, char* error, int32_t error_size);

// Reserves address space for `blocks` KV blocks, once; memory is taken as blocks are first written.
HR_EXPORT int32_t hr_allocate_kv(hr_model* model, int64_t blocks, char* error, int32_t error_size);

// HR_WANT_EMBEDDING: the last token's hidden state after the final norm.
enum { HR_WANT_NOTHING = -1, HR_WANT_GREEDY = -2, HR_WANT_EMBEDDING = -3 };

// A run of consecutive tokens of one sequence (headrace.types.PlanRow). Indices point into the batch's arrays.
typedef struct hr_row {
  int32_t first_token, num_tokens;
  int32_t start;  // position of the first token
  int32_t first_block, num_blocks;
  int32_t want;  // HR_WANT_ or the index of the first of its samplings
  int32_t first_target, num_targets;
  int32_t target_logprobs;
} hr_row;

typedef struct hr_batch {
  const hr_row* rows;
  const int32_t* tokens;
  const int32_t* blocks;
  const int32_t* copies;  // (source, destination) pairs
  const int32_t* targets;
  const hr_sampling* samplings;
  int32_t num_rows, num_tokens, num_blocks, num_copies, num_targets, num_samplings;
  const int32_t* num_choices;  // per row: after so many of its last tokens a token is chosen; null: one for each row
} hr_batch;

// The results, in arrays of the caller's. A status is an HR_SAMPLE_ code. `row_` has one element for each choice of each
// row (set for greedy rows, token -1 elsewhere); the rest has one for each sampling, then one for each target. An
// entry's most likely tokens start, in the `top_` arrays, after as many as all entries before it asked for.
typedef struct hr_result {
  int32_t* row_token;
  int32_t* row_status;
  int32_t* token;
  int32_t* status;
  int32_t* rank;
  int32_t* top_count;
  float* logprob;
  int32_t* top_ids;
  float* top_logprobs;
  float* embeddings;  // hr_spec.hidden numbers for each row that wants them, in the rows' order
} hr_result;

// One step: copies, then all rows. Fails, with nothing computed, when an index is out of range.
HR_EXPORT int32_t hr_step(hr_model* model, const hr_batch* batch, const hr_result* result, char* error,
                          int32_t error_size);

// Bytes of {weights, activations, KV address space, one KV block}.
HR_EXPORT void hr_memory(const hr_model* model, int64_t bytes[4]);
HR_EXPORT const char* hr_isa(const hr_model* model);
// The instruction sets that this machine can run, best first, separated by spaces.
HR_EXPORT const char* hr_isas(void);

#ifdef __cplusplus
}
#endif
