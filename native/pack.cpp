// Loading weights: each tensor is expanded from its storage type and packed into tiles, in parallel, in one pass.
#include <string.h>

#include <algorithm>
#include <atomic>

#include "dequant.h"
#include "integer.h"
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

std::string tensor_name(const hr_tensor& t) { return tensor_name(t.role, t.layer); }

constexpr int kBF16 = 2;  // an index of kStorage
constexpr long kSmallModel = 512L << 20;  // bytes

// 16 rows of bf16 into the tiles at dst, 2 tiles apart: kernels.h's order of pairs, nothing rounded. A null row is zeros.
// False if not all are finite.
bool pack_bf16(const uint8_t* const rows[kTileN], long columns, int k_tiles, char* dst) {
  constexpr int kPairs = kTileK / 2;
  uint32_t bad = 0;
  for (int t = 0; t < k_tiles; t++, dst += 2 * kTileK * kTileN * 2) {
    const long bytes = std::min((long)kTileK, columns - (long)t * kTileK) * 2;
    uint32_t tile[kPairs][kTileN];
    for (int n = 0; n < kTileN; n++) {
      uint32_t pairs[kPairs];
      if (rows[n] && bytes == sizeof pairs) {
        __builtin_prefetch(rows[n] + (long)t * sizeof pairs + 512, 0, 2);  // 16 streams are more than the hardware follows
        memcpy(pairs, rows[n] + (long)t * sizeof pairs, sizeof pairs);
      } else {
        memset(pairs, 0, sizeof pairs);
        if (rows[n]) memcpy(pairs, rows[n] + (long)t * sizeof pairs, bytes);
      }
      for (uint32_t pair : pairs)  // an exponent of all ones becomes 0x8000 or more in its half
        bad |= ((pair & 0x7f807f80u) + 0x00800080u) & 0x80008000u;
      for (int i = 0; i < kPairs; i++) tile[i][n] = pairs[i];
    }
    memcpy(dst, tile, sizeof tile);
  }
  return bad == 0;
}

}  // namespace

void Model::check(const hr_tensor& t) const {
  if (t.role < 0 || t.role >= HR_ROLES) throw Error("unknown tensor role " + std::to_string(t.role));
  if (t.layer < 0 || t.layer >= spec.layers) throw Error("no layer " + std::to_string(t.layer));
  const std::string name = tensor_name(t);
  if (!expected(spec, t.role)) throw Error("the specification has no tensor " + name);
  if (!is_storage(t.storage)) throw Error(name + ": unknown storage type " + std::to_string(t.storage));
  const Shape want = expected_shape(spec, t.role);
  if (t.rows != want.rows || t.columns != want.columns)
    throw Error(name + " has shape [" + std::to_string(t.rows) + ", " + std::to_string(t.columns) + "], expected [" +
                std::to_string(want.rows) + ", " + std::to_string(want.columns) + "]");
  const auto& block = kStorage[t.storage];
  if (t.columns % block.elements || t.bytes != t.rows * (t.columns / block.elements) * block.bytes)
    throw Error(name + ": " + std::to_string(t.bytes) + " bytes do not hold its " + std::to_string(t.rows * t.columns) + " values");
  const int kept = kept_storage(t.role, t.layer);
  if (matrix_of(t) && kept != t.storage && (strip_format(t.storage) != kDense || t.columns % kStorage[kept].elements))
    throw Error(name + " cannot be kept as the storage type that was announced");
}

const Matrix* Model::matrix_of(const hr_tensor& t) const {
  const Layer& l = layers[t.layer];
  switch (t.role) {
    case HR_EMBEDDING: return spec.has(HR_TIED) ? &lm_head : &embedding;
    case HR_LM_HEAD: return &lm_head;
    case HR_Q: case HR_K: case HR_V: return &l.qkv;
    case HR_O: return &l.o;
    case HR_GATE: case HR_UP: return &l.gate_up;
    case HR_DOWN: return &l.down;
    default: return nullptr;
  }
}

float* Model::vector_of(const hr_tensor& t) const {
  const Layer& l = layers[t.layer];
  switch (t.role) {
    case HR_NORM: return final_norm;
    case HR_ATTENTION_NORM: return l.attention_norm;
    case HR_FFN_NORM: return l.ffn_norm;
    case HR_ATTENTION_POST_NORM: return l.attention_post_norm;
    case HR_FFN_POST_NORM: return l.ffn_post_norm;
    case HR_Q_NORM: return l.q_norm;
    case HR_K_NORM: return l.k_norm;
    case HR_O_BIAS_: return l.o_bias;
    case HR_Q_BIAS: return l.qkv_bias;
    case HR_K_BIAS: return l.qkv_bias + spec.q_columns();
    default: return l.qkv_bias + spec.q_columns() + spec.kv_columns();  // HR_V_BIAS
  }
}

// The units of all matrices are one list that the threads share: nobody waits at the end of each of hundreds of tensors.
void Model::set_tensors(const hr_tensor* tensors, int count) {
  struct Job { const Matrix* matrix; const hr_tensor* tensor; long end; };  // up to unit `end` of the list
  std::vector<Job> jobs;
  long units = 0, bytes = 0, most_floats = 0, most_blocks = 0;
  for (const hr_tensor* t = tensors; t < tensors + count; t++) {
    check(*t);
    const Matrix* m = matrix_of(*t);
    if (!m) {
      set_vector(vector_of(*t), *t);
      continue;
    }
    const auto& kept = kStorage[kept_storage(t->role, t->layer)];
    bytes += t->bytes;
    units += round_up(t->rows, kTileN) / kTileN;
    most_floats = std::max(most_floats, (long)kTileN * m->k_tiles * kTileK);
    most_blocks = std::max(most_blocks, kTileN * (t->columns / kept.elements * kept.bytes));
    jobs.push_back({m, t, units});
  }
  std::atomic<long> next{0};
  std::atomic<const hr_tensor*> faulty{nullptr};
  auto work = [&](int) {
    std::vector<float> floats(most_floats);
    std::vector<uint8_t> blocks(most_blocks);
    size_t job = 0;
    for (long u; (u = next.fetch_add(1)) < units;) {
      while (u >= jobs[job].end) job++;
      const long first = job ? jobs[job - 1].end : 0;
      if (!pack_unit(*jobs[job].matrix, *jobs[job].tensor, u - first, floats, blocks)) faulty = jobs[job].tensor;
    }
  };
  // A small model's vocabulary takes as long to read as its weights: one processor is left for it.
  run_parallel(bytes < kSmallModel ? std::max(1, team.threads() - 1) : team.threads(), work);
  if (const hr_tensor* t = faulty) throw Error(tensor_name(*t) + " has a value that is NaN or infinite");
  for (const hr_tensor* t = tensors; t < tensors + count; t++)
    present_[(size_t)(t->role <= HR_NORM ? 0 : t->layer + 1) * HR_ROLES + t->role] = true;
}

// A unit is 16 columns of the packed matrix: 16 rows become a strip, or are expanded and transposed into tiles.
bool Model::pack_unit(const Matrix& m, const hr_tensor& t, long unit, std::vector<float>& floats,
                      std::vector<uint8_t>& blocks) const {
  const long first_tile = t.role == HR_K   ? spec.q_columns() / kTileN
                          : t.role == HR_V ? (spec.q_columns() + spec.kv_columns()) / kTileN
                          : t.role == HR_UP ? 1 : 0;
  const long tile_step = t.role == HR_GATE || t.role == HR_UP ? 2 : 1;  // gate and up take turns
  const long tile = first_tile + unit * tile_step, half = tile % 2;
  const Panel& panel = m.panels[tile / 2];

  const long row_bytes = t.bytes / t.rows;
  const uint8_t* rows[kTileN] = {};
  for (long i = 0; i < kTileN; i++) {
    long row = unit * kTileN + i;
    if (row >= t.rows) break;
    if (needs_rope_order(t.role)) row = rope_row(row, spec.head_dim, spec.ropes[layers[t.layer].rope]);
    rows[i] = (const uint8_t*)t.data + row * row_bytes;
  }
  if (panel.dense()) {
    char* tiles = panel.tiles() + half * kTileK * kTileN * element();
    if (t.storage == kBF16 && kernels.bf16) return pack_bf16(rows, t.columns, m.k_tiles, tiles);
    const long k = (long)m.k_tiles * kTileK;
    for (long i = 0; i < kTileN; i++) {
      float* out = floats.data() + i * k;
      std::fill(out + (rows[i] ? t.columns : 0), out + k, 0.0f);
      if (rows[i]) hr_dequantize(t.storage, rows[i], out, t.columns);
    }
    return kernels.pack(floats.data(), m.k_tiles, tiles);
  }
  const int kept = kept_storage(t.role, t.layer);
  bool finite = true;
  if (t.storage != kept) {
    const long kept_bytes = t.columns / kStorage[kept].elements * kStorage[kept].bytes;  // of a row
    for (long i = 0; i < kTileN; i++) {
      if (!rows[i]) continue;
      uint8_t* out = blocks.data() + i * kept_bytes;
      finite &= hr_requantize(t.storage, rows[i], kept, HR_FIT, out, t.columns);
      rows[i] = out;
    }
  }
  char* strip = panel.strips[half].data;
  return (m.integer ? pack_integer(kept, rows, t.columns, m.byte_tiles(), strip) : pack_strip(kept, rows, m.k_tiles, strip)) && finite;
}

void Model::set_vector(float* out, const hr_tensor& t) const {
  std::vector<float> values(t.columns);
  if (!hr_dequantize(t.storage, t.data, values.data(), t.columns))
    throw Error(tensor_name(t) + " cannot be expanded from its storage type");
  const bool bias = t.role == HR_Q_BIAS || t.role == HR_K_BIAS || t.role == HR_V_BIAS || t.role == HR_O_BIAS_;
  const Rope& rope = spec.ropes[layers[t.layer].rope];
  for (long i = 0; i < t.columns; i++) {
    const float value = values[needs_rope_order(t.role) ? rope_row(i, spec.head_dim, rope) : i];
    if (value - value != 0.0f) throw Error(tensor_name(t) + " has a value that is NaN or infinite");
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
