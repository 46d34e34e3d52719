// A loaded model: its specification, packed weights, KV pool and scratch.
#pragma once
#include <stdint.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "headrace.h"
#include "integer.h"
#include "kernels.h"
#include "memory.h"
#include "pool.h"
#include "strips.h"

namespace hr {

inline long round_up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

// A failure to tell the caller: the message becomes the text in the ABI's error buffer.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// 32 columns of a packed matrix: both kDense, then they are tiles side by side (kernels.h), or two strips: in formats of
// integer.h where the matrix is one of integers, else of strips.h.
struct Panel {
  Strip strips[2];
  long bytes;

  bool dense() const { return strips[0].format == kDense; }
  char* tiles() const { return strips[0].data; }  // of a dense one
};

// A packed linear layer.
struct Matrix {
  int k_tiles = 0;
  bool integer = false;  // multiplied by integers
  std::vector<Panel> panels;

  int byte_tiles() const { return (k_tiles * kTileK + kByteK - 1) / kByteK; }
};

struct Rope {
  std::vector<float> inv_freq;
  float magnitude;
  bool interleaved;
};

struct Layer {
  Matrix qkv, o, gate_up, down;
  // fp32, padded with zeros; null where the model has none. Norm weights have the spec's offset added.
  float *attention_norm, *ffn_norm, *attention_post_norm, *ffn_post_norm, *q_norm, *k_norm, *qkv_bias, *o_bias;
  int rope, window;  // window 0: everything before
};

struct Spec {
  explicit Spec(const hr_spec& s);

  int vocab, hidden, layers, heads, kv_heads, head_dim, ffn, flags;
  float norm_eps, norm_offset, attention_scale, embedding_scale, attention_softcap, logit_softcap;
  std::vector<Rope> ropes;
  std::vector<int> layer_rope, layer_window;

  std::vector<uint8_t> storage;  // [layer + 1][role]

  bool has(int flag) const { return (flags & flag) != 0; }
  int head_pad() const { return (int)round_up(head_dim, kTileK); }
  int group() const { return heads / kv_heads; }
  int rope_pairs() const;  // the most of any rope
  // Columns of the q, k and v parts of a QKV product: each is padded to whole tiles.
  long q_columns() const { return round_up((long)heads * head_dim, kTileN); }
  long kv_columns() const { return round_up((long)kv_heads * head_dim, kTileN); }
};

// Per-step working memory, sized at load for the largest step.
struct Scratch {
  long capacity;       // tokens of the largest step
  long hidden_ld, qkv_ld;
  long logit_rows, logit_ld;
  float *residual, *qkv, *branch;        // [tokens][ld]; branch: a sub-layer's output before its post-norm
  char *a_hidden, *a_attention, *a_ffn;  // A operands
  char* integers;                        // the A operand of the matrix of integers that is multiplied next
  float *cos, *sin;                      // [rope][tokens][pairs]
  float* logits;                         // [logit_rows][logit_ld]
};

// What one thread works with.
struct alignas(64) ThreadScratch {
  alignas(64) float q[kQueryRows * kMaxHeadDim];
  alignas(64) float k[kMaxHeadDim];
  AttentionState total, part;
  float* c;           // [kProductRows][32]: blocks of products, before they are finished
  char* a;            // A operand of a few rows, normed (and made integers) by each thread for itself
  float* row;         // on its way to integers
  char* panel;        // the tiles of a quantised panel
  char* kv_tiles;     // K and V of a chunk of context
  ArgMax* best;       // [tokens]
  void* sampler;
};

class Model {
 public:
  // `planes`: bytes of an integer activation; 0: quantised weights are multiplied by floats.
  Model(const hr_spec& spec, bool kv_8bit, int planes, long max_batch_tokens, long max_model_len, int threads,
        const Kernels& kernels);

  // Expands, checks and packs tensors; throws Error.
  void set_tensors(const hr_tensor* tensors, int count);
  void check_complete() const;
  void allocate_kv(long blocks);

  long element() const { return kernels.bf16 ? 2 : 4; }
  long a_element() const { return kernels.a_bf16 ? 2 : 4; }
  // K or V of one head of a block: elements, or codes and a scale for each token.
  long kv_half_bytes() const { return kv_8bit ? kKvBlock * (spec.head_pad() + 4L) : kKvBlock * spec.head_pad() * element(); }
  long kv_layer_bytes() const { return 2 * kv_half_bytes() * spec.kv_heads; }
  long kv_block_bytes() const { return kv_layer_bytes() * spec.layers; }

  const Spec spec;
  const bool kv_8bit;
  const int planes;
  const Kernels& kernels;
  const long max_model_len;
  Team team;
  uint32_t phase = 1;  // of the next step; see Team::claim

  Matrix embedding, lm_head;  // embedding is empty when it is tied to lm_head
  float* final_norm = nullptr;
  std::vector<Layer> layers;

  long kv_blocks = 0;
  Mapping weights_memory, scratch_memory, kv_memory;
  Scratch scratch;
  std::vector<ThreadScratch*> threads;
  Mapping split_states;  // [slots of a step] AttentionState; grows to the most seen

 private:
  void lay_out_weights(Arena& arena);
  void lay_out_scratch(Arena& arena, long max_batch_tokens, int thread_count);
  // `parts`: the role and the number of columns of each tensor that the matrix is made of; `turns`: 16 of each in turn.
  Matrix matrix(Arena& arena, int layer, long k, std::vector<std::pair<int, long>> parts, bool turns = false) const;
  void check(const hr_tensor& tensor) const;
  const Matrix* matrix_of(const hr_tensor& tensor) const;  // null: it is a vector
  float* vector_of(const hr_tensor& tensor) const;
  bool pack_unit(const Matrix& m, const hr_tensor& tensor, long unit, std::vector<float>& floats,
                 std::vector<uint8_t>& blocks) const;
  int kept_storage(int role, int layer) const {
    return spec.storage[(size_t)(role <= HR_NORM ? 0 : layer + 1) * HR_ROLES + role];
  }
  void set_vector(float* out, const hr_tensor& tensor) const;

  std::vector<bool> present_;  // [layer + 1][role]; slot 0: the model's own tensors
};

}  // namespace hr
