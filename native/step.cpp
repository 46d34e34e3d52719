#include "step.h"

#include <string.h>

#include <algorithm>
#include <cmath>

#include "step_gemm.h"

namespace hr {

Step::Step(Model& model, const hr_batch& batch, const hr_result& result)
    : model_(model), batch_(batch), result_(result), k_(model.kernels), spec_(model.spec), s_(model.scratch) {
  check();
  plan_tokens();
  plan_attention();
  plan_logits();
}

void Step::run() {
  const uint32_t first = model_.phase;
  auto body = [&](int thread) {
    Walk w{thread, first, *model_.threads[thread]};
    walk(w);
    if (thread == 0) model_.phase = w.phase;
  };
  run_parallel(model_.team.threads(), body);
}

void Step::end_phase(Walk& w) const {
  model_.team.barrier();
  w.phase++;
}

void Step::walk(Walk& w) {
  copy_blocks(w);
  embed(w);
  for (int i = 0; i < spec_.layers; i++) layer(w, i);
  embeddings(w);
  logits(w);
  k_.leave();
}

// Copies may chain, so every thread does all of them in order, each on its share of the layers.
void Step::copy_blocks(Walk& w) {
  const long n = model_.team.threads(), layers = spec_.layers;
  const long begin = layers * w.thread / n * model_.kv_layer_bytes();
  const long end = layers * (w.thread + 1) / n * model_.kv_layer_bytes();
  for (int i = 0; i < batch_.num_copies; i++) {
    const char* from = model_.kv_memory.data() + batch_.copies[2 * i] * model_.kv_block_bytes();
    char* to = model_.kv_memory.data() + batch_.copies[2 * i + 1] * model_.kv_block_bytes();
    if (from != to) memcpy(to + begin, from + begin, end - begin);
  }
}

void Step::embed(Walk& w) {
  const Matrix& table = spec_.has(HR_TIED) ? model_.lm_head : model_.embedding;
  const long pairs = spec_.rope_pairs();
  for (long t; (t = claim(w, tokens_)) >= 0;) {
    const int column = batch_.tokens[t] % kPanelN;
    const Panel& stored = table.panels[batch_.tokens[t] / kPanelN];
    float* out = s_.residual + t * s_.hidden_ld;
    if (table.integer)
      integer_column(stored.strips[column / kTileN], table.byte_tiles(), column % kTileN, spec_.hidden, spec_.embedding_scale,
                     out);
    else
      k_.unpack(tiles(w, table, stored, column / kTileN), table.k_tiles, column, spec_.embedding_scale, out);
    for (size_t r = 0; r < spec_.ropes.size(); r++) {
      const Rope& rope = spec_.ropes[r];
      const long at = (r * s_.capacity + t) * pairs;
      for (size_t j = 0; j < rope.inv_freq.size(); j++) {
        const float angle = (float)position_[t] * rope.inv_freq[j];
        s_.cos[at + j] = std::cos(angle) * rope.magnitude;
        s_.sin[at + j] = std::sin(angle) * rope.magnitude;
      }
    }
  }
  end_phase(w);
}

const char* Step::tiles(Walk& w, const Matrix& m, const Panel& panel, int half) const {
  if (panel.dense()) return panel.tiles();
  for (int i : {0, 1})
    if (half < 0 || half == i)
      k_.expand(panel.strips + i, m.k_tiles, 0, m.k_tiles, w.scratch.panel + i * kTileK * kTileN * model_.element());
  return w.scratch.panel;
}

// The A operand of norm(residual), for m.
const char* Step::normed(Walk& w, const float* weight, const Matrix& m) {
  const int k_tiles = (int)(s_.hidden_ld / kTileK);
  char* all = m.integer ? s_.integers : s_.a_hidden;
  const auto norm = [&](char* a, long t) {
    if (m.integer) return norm_to_integers(w, weight, m, t, a, t);
    k_.norm_to_a(s_.residual + t * s_.hidden_ld, weight, spec_.hidden, spec_.norm_eps, a, k_tiles, (int)t);
  };
  if (tokens_ <= kFewRows) {
    for (long t = 0; t < tokens_; t++) norm(w.scratch.a, t);
    return w.scratch.a;
  }
  const long some = 8;
  for (long u; (u = claim(w, (tokens_ + some - 1) / some)) >= 0;)
    for (long t = u * some; t < std::min(tokens_, (u + 1) * some); t++) {
      prefetch(s_.residual + std::min(tokens_ - 1, t + 2) * s_.hidden_ld, s_.hidden_ld);
      norm(all, t);
    }
  end_phase(w);
  return all;
}

// residual += norm(branch), where a model norms what a sub-layer gives.
void Step::add_branch(Walk& w, const float* norm, float* branch) {
  if (!norm) return;
  const long ld = s_.hidden_ld;
  for (long t; (t = claim(w, tokens_)) >= 0;)
    k_.norm_add(branch + t * ld, norm, spec_.hidden, spec_.norm_eps, s_.residual + t * ld);
  end_phase(w);
}

void Step::layer(Walk& w, int index) {
  const Layer& l = model_.layers[index];
  const long ld = s_.hidden_ld;
  const bool gelu = spec_.has(HR_GELU_TANH);
  // A product that is written to, or added to, rows of floats.
  const auto to = [](auto kernel, float* out, long stride, const float* bias) {
    return [=](const float* c, int rows, long row, long column) {
      Finish f;
      f.rows = kernel;
      f.c = c;
      f.count = rows;
      f.bias = bias ? bias + column : nullptr;
      f.out = out + row * stride + column;
      f.ld = stride;
      return f;
    };
  };
  const auto to_residual = [&](const float* post_norm, const float* bias) {
    return post_norm ? to(k_.store, s_.branch, ld, bias) : to(k_.add, s_.residual, ld, bias);
  };

  gemm(w, l.qkv, normed(w, l.attention_norm, l.qkv), tokens_, to(k_.store, s_.qkv, s_.qkv_ld, l.qkv_bias));
  end_phase(w);
  attention(w, index);
  gemm(w, l.o, operand(w, l.o, s_.a_attention), tokens_, to_residual(l.attention_post_norm, l.o_bias));
  end_phase(w);
  add_branch(w, l.attention_post_norm, s_.branch);

  gemm(w, l.gate_up, normed(w, l.ffn_norm, l.gate_up), tokens_, [&](const float* c, int rows, long row, long column) {
    Finish f;
    f.rows = k_.gate;
    f.c = c;
    f.count = rows;
    f.a = s_.a_ffn;
    f.k_tiles = l.down.k_tiles;
    f.row = (int)row;
    f.column = (int)(column / 2);
    f.gelu = gelu;
    return f;
  });
  end_phase(w);
  gemm(w, l.down, operand(w, l.down, s_.a_ffn), tokens_, to_residual(l.ffn_post_norm, nullptr));
  end_phase(w);
  add_branch(w, l.ffn_post_norm, s_.branch);
}

}  // namespace hr
