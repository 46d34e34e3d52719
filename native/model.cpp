#include "model.h"

#include <algorithm>

namespace hr {

Spec::Spec(const hr_spec& s)
    : vocab(s.vocab), hidden(s.hidden), layers(s.layers), heads(s.heads), kv_heads(s.kv_heads), head_dim(s.head_dim),
      ffn(s.ffn), flags(s.flags), norm_eps(s.norm_eps), norm_offset(s.norm_offset), attention_scale(s.attention_scale),
      embedding_scale(s.embedding_scale), attention_softcap(s.attention_softcap), logit_softcap(s.logit_softcap) {
  if (vocab < 1 || hidden < 1 || layers < 1 || heads < 1 || kv_heads < 1 || ffn < 1 || s.num_ropes < 1)
    throw Error("the model's sizes must be positive");
  if (heads % kv_heads) throw Error("heads must be a multiple of kv_heads");
  if (head_dim < 2 || head_dim % 2 || head_dim > kMaxHeadDim)
    throw Error("head_dim must be even and at most " + std::to_string(kMaxHeadDim));
  for (int i = 0; i < s.num_ropes; i++) {
    const hr_rope& r = s.ropes[i];
    if (r.pairs < 0 || 2 * r.pairs > head_dim) throw Error("a rope rotates more than a head's dimensions");
    ropes.push_back({std::vector<float>(r.inv_freq, r.inv_freq + r.pairs), r.magnitude, r.interleaved != 0});
  }
  for (int i = 0; i < layers; i++) {
    if (s.layer_rope[i] < 0 || s.layer_rope[i] >= s.num_ropes) throw Error("a layer's rope does not exist");
    if (s.layer_window[i] < 0) throw Error("a layer's window is negative");
    layer_rope.push_back(s.layer_rope[i]);
    layer_window.push_back(s.layer_window[i]);
  }
  storage.assign(s.storage, s.storage + (size_t)(layers + 1) * HR_ROLES);
  for (uint8_t kept : storage)
    if (!is_storage(kept)) throw Error("unknown storage type " + std::to_string(kept));
}

int Spec::rope_pairs() const {
  size_t most = 0;
  for (const Rope& rope : ropes) most = std::max(most, rope.inv_freq.size());
  return (int)most;
}

Model::Model(const hr_spec& s, bool kv_codes, int plane_count, long max_batch_tokens, long max_len, int thread_count,
             const Kernels& k)
    : spec(s), kv_8bit(kv_codes), planes(plane_count), kernels(k), max_model_len(max_len), team(thread_count), layers(spec.layers), scratch(),
      present_((size_t)(spec.layers + 1) * HR_ROLES) {
  Arena count(nullptr);
  lay_out_weights(count);
  weights_memory = Mapping(count.used());
  Arena weights(weights_memory.data());
  lay_out_weights(weights);

  Arena count_scratch(nullptr);
  lay_out_scratch(count_scratch, max_batch_tokens, thread_count);
  scratch_memory = Mapping(count_scratch.used());
  Arena pieces(scratch_memory.data());
  lay_out_scratch(pieces, max_batch_tokens, thread_count);
}

Matrix Model::matrix(Arena& arena, int layer, long k, std::vector<std::pair<int, long>> parts, bool turns) const {
  Matrix m;
  m.k_tiles = (int)(round_up(k, kTileK) / kTileK);
  m.integer = planes > 0 && k <= kMostIntegerK;
  for (const auto& part : parts) m.integer &= strip_format(kept_storage(part.first, layer)) != kDense;
  std::vector<int> formats;  // of each 16 columns
  for (const auto& [role, columns] : parts) {
    const int kept = kept_storage(role, layer), format = m.integer ? integer_format(kept) : strip_format(kept);
    formats.insert(formats.end(), round_up(columns, kTileN) / kTileN, format);
  }
  if (turns) {
    const std::vector<int> in_order = formats;
    for (size_t i = 0; i < formats.size(); i++) formats[i] = in_order[i / 2 + i % 2 * formats.size() / 2];
  }
  if (formats.size() % 2) formats.push_back(formats.back());
  for (size_t i = 0; i < formats.size(); i += 2) {
    int left = formats[i], right = formats[i + 1];
    if (left == kDense || right == kDense) left = right = kDense;
    const auto bytes = [&](int format) {
      if (m.integer) return integer_strip_bytes(format, m.byte_tiles());
      return format == kDense ? m.k_tiles * kTileK * kTileN * element() : strip_bytes(kStripFormats[format], m.k_tiles);
    };
    const long size = bytes(left) + bytes(right);
    char* data = arena.take<char>(size);
    m.panels.push_back({{{data, left, size}, {data ? data + bytes(left) : nullptr, right, size}}, size});
  }
  return m;
}

void Model::lay_out_weights(Arena& arena) {
  const long q = spec.q_columns(), kv = spec.kv_columns(), hidden = round_up(spec.hidden, kTileK);
  const auto vector = [&](bool present, long n) { return present ? arena.take<float>(n) : nullptr; };
  lm_head = matrix(arena, 0, spec.hidden, {{spec.has(HR_TIED) ? HR_EMBEDDING : HR_LM_HEAD, spec.vocab}});
  if (!spec.has(HR_TIED)) embedding = matrix(arena, 0, spec.hidden, {{HR_EMBEDDING, spec.vocab}});
  final_norm = vector(true, hidden);
  for (int i = 0; i < spec.layers; i++) {
    Layer& l = layers[i];
    l.qkv = matrix(arena, i, spec.hidden, {{HR_Q, q}, {HR_K, kv}, {HR_V, kv}});
    l.o = matrix(arena, i, (long)spec.heads * spec.head_dim, {{HR_O, spec.hidden}});
    l.gate_up = matrix(arena, i, spec.hidden, {{HR_GATE, spec.ffn}, {HR_UP, spec.ffn}}, true);
    l.down = matrix(arena, i, spec.ffn, {{HR_DOWN, spec.hidden}});
    l.attention_norm = vector(true, hidden);
    l.ffn_norm = vector(true, hidden);
    l.attention_post_norm = vector(spec.has(HR_POST_NORMS), hidden);
    l.ffn_post_norm = vector(spec.has(HR_POST_NORMS), hidden);
    l.q_norm = vector(spec.has(HR_QK_NORM), spec.head_pad());
    l.k_norm = vector(spec.has(HR_QK_NORM), spec.head_pad());
    l.qkv_bias = vector(spec.has(HR_QKV_BIAS), round_up(q + 2 * kv, kPanelN));
    l.o_bias = vector(spec.has(HR_O_BIAS), hidden);
    l.rope = spec.layer_rope[i];
    l.window = spec.layer_window[i];
  }
}

void Model::lay_out_scratch(Arena& arena, long tokens, int thread_count) {
  const long rows = round_up(tokens, kRowBlock);  // whole row blocks: kernels may read the rows between
  const long hidden = round_up(spec.hidden, kTileK), attention = round_up((long)spec.heads * spec.head_dim, kTileK);
  const long ffn = round_up(spec.ffn, kTileK), qkv = round_up(spec.q_columns() + 2 * spec.kv_columns(), kPanelN);
  const long few = 16, widest = round_up(std::max({hidden, attention, ffn}), kByteK);
  const auto integers = [&](long rows, long k) {
    return round_up(rows, kRowBlock) / 16 * integer_group_bytes(round_up(k, kByteK) / kByteK, planes);
  };
  Scratch& s = scratch;
  s.capacity = tokens;
  s.hidden_ld = hidden;
  s.qkv_ld = qkv;
  s.logit_ld = round_up(spec.vocab, kPanelN);
  s.logit_rows = std::max(16L, (32L << 20) / (s.logit_ld * 4));
  s.residual = arena.take<float>(rows * hidden);
  s.branch = spec.has(HR_POST_NORMS) ? arena.take<float>(rows * hidden) : nullptr;
  s.qkv = arena.take<float>(rows * qkv);
  s.a_hidden = arena.take<char>(round_up(tokens + s.logit_rows, kRowBlock) * hidden * a_element());
  s.a_attention = arena.take<char>(rows * attention * a_element());
  s.a_ffn = arena.take<char>(rows * ffn * a_element());
  const long most_integers = std::max(integers(tokens, widest), integers(tokens + s.logit_rows, hidden));
  s.integers = planes ? arena.take<char>(most_integers) : nullptr;
  s.cos = arena.take<float>(spec.ropes.size() * tokens * spec.rope_pairs());
  s.sin = arena.take<float>(spec.ropes.size() * tokens * spec.rope_pairs());
  s.logits = arena.take<float>(s.logit_rows * s.logit_ld);
  threads.clear();
  for (int i = 0; i < thread_count; i++) {
    ThreadScratch* t = arena.take<ThreadScratch>(1);
    float* c = arena.take<float>(kProductRows * kPanelN);
    char* a = arena.take<char>(std::max(few * hidden * a_element(), planes ? integers(few, widest) : 0));
    float* row = arena.take<float>(widest);
    char* panel = arena.take<char>(widest * kPanelN * element() + 2 * kStripEnd);
    char* kv_tiles = arena.take<char>(2L * kChunk * spec.head_pad() * element());
    ArgMax* best = arena.take<ArgMax>(tokens);
    char* sampler = arena.take<char>(hr_sampler_scratch_bytes(spec.vocab));
    if (t) t->c = c, t->a = a, t->row = row, t->panel = panel, t->kv_tiles = kv_tiles, t->best = best, t->sampler = sampler;
    threads.push_back(t);
  }
}

void Model::allocate_kv(long blocks) {
  if (kv_blocks) throw Error("KV blocks are allocated once");
  if (blocks < 1 || blocks > INT32_MAX) throw Error("the number of KV blocks must be positive and below 2^31");
  if (blocks > (1L << 46) / kv_block_bytes()) throw Error("that many KV blocks exceed the address space");
  kv_memory = Mapping((size_t)blocks * kv_block_bytes());
  kv_blocks = blocks;
}

}  // namespace hr
