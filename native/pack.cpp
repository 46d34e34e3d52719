// Loading weights: each tensor is expanded from its storage type and packed into tiles, in parallel, in one pass.
#include <string.h>

#include <algorithm>
#include <atomic>

#include "dequant.h"
#include "model.h"
#include "quantize.h"

namespace hr {
namespace {

constexpr const char* kRoleNames[HR_ROLES] = {
    "embedding", "lm_head", "norm", "attention_norm", "q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias",
    "q_norm", "k_norm", "attention_post_norm", "ffn_norm", "gate", "up", "down", "ffn_post_norm"};

// (elements, bytes) of a block of each storage type, in headrace.weights.DType's order.
constexpr struct { long elements, bytes; } kStorage[] = {{1, 4},    {1, 2},    {1, 2},    {32, 34},   {32, 18},  {32, 20},
                                                         {32, 22},  {32, 24},  {256, 144}, {256, 176}, {256, 210}};

std::string tensor_name(int role, int layer) {
  return role <= HR_NORM ? kRoleNames[role] : "layers." + std::to_string(layer) + "." + kRoleNames[role];
}

// Source row of row `i` of a q or k projection. Interleaved RoPE pairs (2j, 2j + 1) are put at (j, j + pairs), where
// the kernels rotate: q and k are permuted alike, so their products stay what they were.
long rope_row(long i, int head_dim, const Rope& rope) {
  const long pairs = (long)rope.inv_freq.size(), d = i % head_dim, head = i - d;
  if (!rope.interleaved || d >= 2 * pairs) return i;
  return head + (d < pairs ? 2 * d : 2 * (d - pairs) + 1);
}

bool needs_rope_order(int role) {
  return role == HR_Q || role == HR_K || role == HR_Q_BIAS || role == HR_K_BIAS || role == HR_Q_NORM || role == HR_K_NORM;
}

struct Shape { long rows, columns; };

Shape expected_shape(const Spec& s, int role) {
  const long q = (long)s.heads * s.head_dim, kv = (long)s.kv_heads * s.head_dim;
  switch (role) {
    case HR_EMBEDDING: case HR_LM_HEAD: return {s.vocab, s.hidden};
    case HR_Q: return {q, s.hidden};
    case HR_K: case HR_V: return {kv, s.hidden};
    case HR_O: return {s.hidden, q};
    case HR_GATE: case HR_UP: return {s.ffn, s.hidden};
    case HR_DOWN: return {s.hidden, s.ffn};
    case HR_Q_BIAS: return {1, q};
    case HR_K_BIAS: case HR_V_BIAS: return {1, kv};
    case HR_Q_NORM: case HR_K_NORM: return {1, s.head_dim};
    default: return {1, s.hidden};
  }
}

bool expected(const Spec& s, int role) {
  switch (role) {
    case HR_LM_HEAD: return !s.has(HR_TIED);
    case HR_Q_BIAS: case HR_K_BIAS: case HR_V_BIAS: return s.has(HR_QKV_BIAS);
    case HR_O_BIAS_: return s.has(HR_O_BIAS);
    case HR_Q_NORM: case HR_K_NORM: return s.has(HR_QK_NORM);
    case HR_ATTENTION_POST_NORM: case HR_FFN_POST_NORM: return s.has(HR_POST_NORMS);
    default: return true;
  }
}

}  // namespace

void Model::set_tensor(int role, int layer, int storage, const void* data, long bytes, long rows, long columns) {
  if (role < 0 || role >= HR_ROLES) throw Error("unknown tensor role " + std::to_string(role));
  if (layer < 0 || layer >= spec.layers) throw Error("no layer " + std::to_string(layer));
  const std::string name = tensor_name(role, layer);
  if (!expected(spec, role)) throw Error("the specification has no tensor " + name);
  if (!is_storage(storage)) throw Error(name + ": unknown storage type " + std::to_string(storage));
  const Shape want = expected_shape(spec, role);
  if (rows != want.rows || columns != want.columns)
    throw Error(name + " has shape [" + std::to_string(rows) + ", " + std::to_string(columns) + "], expected [" +
                std::to_string(want.rows) + ", " + std::to_string(want.columns) + "]");
  if (columns % kStorage[storage].elements || bytes != rows * (columns / kStorage[storage].elements) * kStorage[storage].bytes)
    throw Error(name + ": " + std::to_string(bytes) + " bytes do not hold its " + std::to_string(rows * columns) + " values");

  Layer& l = layers[layer];
  const auto put = [&](const Matrix& m) { set_matrix(m, role, layer, storage, data, bytes, rows, columns); };
  const auto put_vector = [&](float* out) { set_vector(out, role, layer, storage, data, columns); };
  switch (role) {
    case HR_EMBEDDING: put(spec.has(HR_TIED) ? lm_head : embedding); break;
    case HR_LM_HEAD: put(lm_head); break;
    case HR_Q: case HR_K: case HR_V: put(l.qkv); break;
    case HR_O: put(l.o); break;
    case HR_GATE: case HR_UP: put(l.gate_up); break;
    case HR_DOWN: put(l.down); break;
    case HR_NORM: put_vector(final_norm); break;
    case HR_ATTENTION_NORM: put_vector(l.attention_norm); break;
    case HR_FFN_NORM: put_vector(l.ffn_norm); break;
    case HR_ATTENTION_POST_NORM: put_vector(l.attention_post_norm); break;
    case HR_FFN_POST_NORM: put_vector(l.ffn_post_norm); break;
    case HR_Q_NORM: put_vector(l.q_norm); break;
    case HR_K_NORM: put_vector(l.k_norm); break;
    case HR_O_BIAS_: put_vector(l.o_bias); break;
    case HR_Q_BIAS: put_vector(l.qkv_bias); break;
    case HR_K_BIAS: put_vector(l.qkv_bias + spec.q_columns()); break;
    case HR_V_BIAS: put_vector(l.qkv_bias + spec.q_columns() + spec.kv_columns()); break;
  }
  present_[(size_t)(role <= HR_NORM ? 0 : layer + 1) * HR_ROLES + role] = true;
}

// Units of 16 columns of the packed matrix: 16 rows become a strip, or are expanded and transposed into tiles.
void Model::set_matrix(const Matrix& m, int role, int layer, int storage, const void* data, long bytes, long rows,
                       long columns) {
  const int kept = kept_storage(role, layer);
  if (kept != storage && (strip_format(storage) != kDense || columns % kStorage[kept].elements))
    throw Error(tensor_name(role, layer) + " cannot be kept as the storage type that was announced");
  const long row_bytes = bytes / rows, k = (long)m.k_tiles * kTileK;
  const long kept_bytes = columns / kStorage[kept].elements * kStorage[kept].bytes;  // of a row
  const Rope& rope = spec.ropes[layers[layer].rope];
  const long first_tile = role == HR_K   ? spec.q_columns() / kTileN
                          : role == HR_V ? (spec.q_columns() + spec.kv_columns()) / kTileN
                          : role == HR_UP ? 1 : 0;
  const long tile_step = role == HR_GATE || role == HR_UP ? 2 : 1;  // gate and up take turns
  const long units = round_up(rows, kTileN) / kTileN;
  std::atomic<long> next{0};
  std::atomic<bool> finite{true};
  auto work = [&](int) {
    std::vector<float> floats(kTileN * k, 0.0f);
    std::vector<uint8_t> blocks(kTileN * kept_bytes);
    for (long u; (u = next.fetch_add(1)) < units;) {
      const long tile = first_tile + u * tile_step;
      const Panel& panel = m.panels[tile / 2];
      const uint8_t* row_blocks[kTileN] = {};
      for (long i = 0; i < kTileN; i++) {
        float* out = floats.data() + i * k;
        long row = u * kTileN + i;
        if (row >= rows) {
          std::fill(out, out + k, 0.0f);
          continue;
        }
        if (needs_rope_order(role)) row = rope_row(row, spec.head_dim, rope);
        const uint8_t* stored = (const uint8_t*)data + row * row_bytes;
        row_blocks[i] = stored;
        if (!panel.dense() && storage == kept) continue;
        if (panel.dense()) {
          hr_dequantize(storage, stored, out, columns);
          continue;
        }
        row_blocks[i] = blocks.data() + i * kept_bytes;
        if (!hr_requantize(storage, stored, kept, HR_FIT, blocks.data() + i * kept_bytes, columns)) finite = false;
      }
      const int half = tile % 2;
      if (!(panel.dense() ? kernels.pack(floats.data(), m.k_tiles, panel.tiles() + half * kTileK * kTileN * element())
                          : pack_strip(kept, row_blocks, m.k_tiles, panel.strips[half].data)))
        finite = false;
    }
  };
  run_parallel(team.threads(), work);
  if (!finite) throw Error(tensor_name(role, layer) + " has a value that is NaN or infinite");
}

void Model::set_vector(float* out, int role, int layer, int storage, const void* data, long columns) {
  std::vector<float> values(columns);
  if (!hr_dequantize(storage, data, values.data(), columns))
    throw Error(tensor_name(role, layer) + " cannot be expanded from its storage type");
  const bool bias = role == HR_Q_BIAS || role == HR_K_BIAS || role == HR_V_BIAS || role == HR_O_BIAS_;
  const Rope& rope = spec.ropes[layers[layer].rope];
  for (long i = 0; i < columns; i++) {
    const float value = values[needs_rope_order(role) ? rope_row(i, spec.head_dim, rope) : i];
    if (value - value != 0.0f) throw Error(tensor_name(role, layer) + " has a value that is NaN or infinite");
    out[i] = value + (bias ? 0.0f : spec.norm_offset);
  }
}

void Model::check_complete() const {
  for (int layer = -1; layer < spec.layers; layer++)
    for (int role = layer < 0 ? 0 : HR_NORM + 1; role < (layer < 0 ? HR_NORM + 1 : (int)HR_ROLES); role++)
      if (expected(spec, role) && !present_[(size_t)(layer + 1) * HR_ROLES + role])
        throw Error("tensor " + tensor_name(role, layer) + " is missing");
}

}  // namespace hr
