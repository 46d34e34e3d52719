// The attention phase: which unit attends to what. The arithmetic is the kernels'.
#include <algorithm>

#include "step.h"

namespace hr {

// RoPE on a token's key, then key and value into their slot.
void Step::write_kv(Walk& w, int layer, int token, int kv_head) {
  const Layer& l = model_.layers[layer];
  const Rope& rope = spec_.ropes[l.rope];
  const int dim = spec_.head_dim, half = (int)rope.inv_freq.size(), position = position_[token];
  const long angle = ((long)l.rope * s_.capacity + token) * spec_.rope_pairs();
  const float* k = s_.qkv + token * s_.qkv_ld + spec_.q_columns() + (long)kv_head * dim;
  const float* v = k + spec_.kv_columns();
  const hr_row& row = batch_.rows[row_of_[token]];
  const long block = batch_.blocks[row.first_block + position / kKvBlock];
  char* dst = model_.kv_memory.data() + block * model_.kv_block_bytes() + layer * model_.kv_layer_bytes() +
              2 * kv_head * model_.kv_half_bytes();
  k_.head(k, l.k_norm, spec_.norm_eps, dim, s_.cos + angle, s_.sin + angle, half, w.scratch.k);
  k_.write_kv[model_.kv_8bit](w.scratch.k, v, dim, position % kKvBlock, dst, dst + model_.kv_half_bytes());
}

void Step::write_kv_phase(Walk& w, int layer) {
  const long some = 16;
  for (long u; (u = claim(w, (tokens_ + some - 1) / some)) >= 0;)
    for (int head = 0; head < spec_.kv_heads; head++)
      for (long t = u * some; t < std::min(tokens_, (u + 1) * some); t++) {
        const float* k = s_.qkv + std::min(tokens_ - 1, t + some) * s_.qkv_ld + spec_.q_columns() + (long)head * spec_.head_dim;
        prefetch(k, spec_.head_dim);
        prefetch(k + spec_.kv_columns(), spec_.head_dim);
        write_kv(w, layer, (int)t, head);
      }
  end_phase(w);
}

void Step::attention(Walk& w, int layer) {
  if (kv_phase_) write_kv_phase(w, layer);
  w.tile_rows = 0;
  const long units = (long)units_.size();
  for (long u; (u = claim(w, units)) >= 0;) attend(w, layer, units_[u], u + 1 < units ? &units_[u + 1] : nullptr);
  end_phase(w);
  if (cut_.empty()) return;
  for (long u; (u = claim(w, (long)cut_.size())) >= 0;) merge_splits(units_[cut_[u]]);
  end_phase(w);
}

// The first position, of a chunk, that a unit's queries attend to.
int Step::first_seen(const Layer& l, const AttentionUnit& unit) const {
  const int seen = position_[tiles_[unit.tile].token] + 1;
  return std::max(l.window ? std::max(0, seen - l.window) / kChunk * kChunk : 0, unit.first_split * kSplit);
}

// `next`: the unit that this thread probably takes next, or null.
void Step::attend(Walk& w, int layer, const AttentionUnit& unit, const AttentionUnit* next) {
  const int kv_head = unit.kv_head;
  const QueryTile& tile = tiles_[unit.tile];
  const Layer& l = model_.layers[layer];
  const Rope& rope = spec_.ropes[l.rope];
  const hr_row& row = batch_.rows[tile.row];
  const int dim = spec_.head_dim, dp = spec_.head_pad(), half = (int)rope.inv_freq.size();
  int32_t low[kQueryRows], high[kQueryRows];
  int rows = 0;
  for (int t = tile.token; t < tile.token + tile.tokens; t++) {
    const long angle = ((long)l.rope * s_.capacity + t) * spec_.rope_pairs();
    for (int h = 0; h < tile.heads; h++, rows++) {
      const long head = (long)kv_head * spec_.group() + tile.first_head + h;
      k_.head(s_.qkv + t * s_.qkv_ld + head * dim, l.q_norm, spec_.norm_eps, dim, s_.cos + angle, s_.sin + angle, half,
              w.scratch.q + rows * dp);
      high[rows] = position_[t] + 1;
      low[rows] = l.window ? std::max(0, high[rows] - l.window) : 0;
    }
    const int split = position_[t] / kSplit;
    if (!kv_phase_ && split >= unit.first_split && split < unit.end_split) write_kv(w, layer, t, kv_head);
  }
  // The queries of the run's next tile, which may have left the caches since they were computed.
  const int after = tile.token + tile.tokens, end_next = std::min(after + tile.tokens, row.first_token + row.num_tokens);
  for (int t = after; t < end_next; t++)
    prefetch(s_.qkv + t * s_.qkv_ld + ((long)kv_head * spec_.group() + tile.first_head) * dim, (long)tile.heads * dim);

  const int used = std::min(rows, 16), end = high[rows - 1];
  if (w.tile_rows != used) k_.enter_attention[model_.kv_8bit](w.tile_rows = used);
  AttentionCall call;
  call.q = w.scratch.q;
  call.rows = rows;
  call.dp = dp;
  call.low = low;
  call.high = high;
  call.blocks = batch_.blocks + row.first_block;
  const auto keys = [&](int head) {
    return model_.kv_memory.data() + layer * model_.kv_layer_bytes() + 2 * head * model_.kv_half_bytes();
  };
  call.kv = keys(kv_head);
  call.block_stride = model_.kv_block_bytes();
  call.v_offset = model_.kv_half_bytes();
  call.scale = spec_.attention_scale;
  call.softcap = spec_.attention_softcap;
  call.tiles = w.scratch.kv_tiles;
  AttentionState* slots = reinterpret_cast<AttentionState*>(model_.split_states.data());
  AttentionState& total = unit.slot < 0 ? w.scratch.total : slots[unit.slot];
  // What the thread turns to after a call: where its keys are.
  const auto then = [&](const QueryTile& tile, int head, int from) {
    call.next_blocks = batch_.blocks + batch_.rows[tile.row].first_block + from / kKvBlock;
    call.next_kv = keys(head);
    call.next_tokens = std::min(position_[tile.token + tile.tokens - 1] + 1 - from, kChunk);
  };
  const int begin = first_seen(l, unit);
  bool first = true;
  for (int s = unit.first_split; s < unit.end_split; s++) {
    call.begin = std::max(begin, s * kSplit);
    call.end = std::max(call.begin, std::min(end, (s + 1) * kSplit));
    if (call.begin == call.end && unit.slot < 0) continue;  // before the window
    call.next_tokens = 0;
    if (s + 1 < unit.end_split)
      then(tile, kv_head, call.end);
    else if (next)
      then(tiles_[next->tile], next->kv_head, first_seen(l, *next));
    k_.attend[model_.kv_8bit](&call, first ? &total : &w.scratch.part);
    if (!first) k_.merge(&total, &w.scratch.part, rows, dp);
    first = false;
  }
  if (unit.slot < 0) finish_tile(total, tile, kv_head);
}

void Step::merge_splits(const AttentionUnit& first) {
  const QueryTile& tile = tiles_[first.tile];
  AttentionState* slots = reinterpret_cast<AttentionState*>(model_.split_states.data()) + first.slot;
  for (int s = 1; s < tile.end_split; s++) k_.merge(slots, slots + s, tile.tokens * tile.heads, spec_.head_pad());
  finish_tile(*slots, tile, first.kv_head);
}

void Step::finish_tile(const AttentionState& state, const QueryTile& tile, int kv_head) {
  const int dim = spec_.head_dim, k_tiles = (int)(round_up((long)spec_.heads * dim, kTileK) / kTileK);
  int r = 0;
  for (int t = 0; t < tile.tokens; t++)
    for (int h = 0; h < tile.heads; h++, r++) {
      const int head = kv_head * spec_.group() + tile.first_head + h;
      k_.finish(&state, r, spec_.head_pad(), dim, s_.a_attention, k_tiles, tile.token + t, head * dim);
    }
}

}  // namespace hr
