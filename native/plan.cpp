// What a step does, decided before its threads start: checks on every index, then the units of work.
#include <algorithm>

#include "step.h"

namespace hr {
namespace {

// Whether all that a sampling asks for is the most likely of the tokens that its mask allows.
bool is_masked_greedy(const hr_sampling& s, int32_t vocab) {
  return s.mask && s.mask_words >= (vocab + kPanelN - 1) / kPanelN && s.temperature == 0.0 && s.logprobs < 0 &&
         s.repetition_penalty == 1.0 && s.presence_penalty == 0.0 && s.frequency_penalty == 0.0 && s.bias_count == 0 &&
         s.allowed_count < 0 && s.green_below == 0;
}

std::string row_name(int index) { return "row " + std::to_string(index) + ": "; }

}  // namespace

void Step::check() const {
  const hr_batch& b = batch_;
  if (b.num_rows < 1) throw Error("a step needs at least one row");
  if (b.num_tokens > s_.capacity)
    throw Error("a step of " + std::to_string(b.num_tokens) + " tokens exceeds the " + std::to_string(s_.capacity) +
                " that were allowed for at load");
  for (int i = 0; i < b.num_tokens; i++)
    if (b.tokens[i] < 0 || b.tokens[i] >= spec_.vocab)
      throw Error("token id " + std::to_string(b.tokens[i]) + " is outside the vocabulary of " + std::to_string(spec_.vocab));
  for (int i = 0; i < b.num_targets; i++)
    if (b.targets[i] < 0 || b.targets[i] >= spec_.vocab)
      throw Error("target id " + std::to_string(b.targets[i]) + " is outside the vocabulary of " + std::to_string(spec_.vocab));
  const auto in_pool = [&](int block) {
    if (block < 0 || block >= model_.kv_blocks)
      throw Error("block " + std::to_string(block) + " is outside the pool of " + std::to_string(model_.kv_blocks));
  };
  for (int i = 0; i < b.num_blocks; i++) in_pool(b.blocks[i]);
  for (int i = 0; i < 2 * b.num_copies; i++) in_pool(b.copies[i]);
  int tokens = 0, targets = 0, samplings = 0;
  for (int i = 0; i < b.num_rows; i++) {
    const hr_row& row = b.rows[i];
    check_row(row, i);
    if (row.first_token != tokens || (row.num_targets && row.first_target != targets) ||
        (row.want >= 0 && row.want != samplings))
      throw Error(row_name(i) + "its tokens, targets and sampling must follow those of the rows before it");
    tokens += row.num_tokens;
    targets += row.num_targets;
    if (row.want >= 0) samplings += choices(i);
  }
  if (tokens != b.num_tokens || targets != b.num_targets || samplings != b.num_samplings)
    throw Error("the rows do not add up to the batch's tokens, targets and samplings");
}

void Step::check_row(const hr_row& row, int index) const {
  const std::string name = row_name(index);
  if (row.num_tokens < 1 || row.num_tokens > batch_.num_tokens) throw Error(name + "it needs at least one token");
  if (row.start < 0 || (long)row.start + row.num_tokens > model_.max_model_len)
    throw Error(name + "positions up to " + std::to_string((long)row.start + row.num_tokens) + " exceed the context of " +
                std::to_string(model_.max_model_len));
  if (row.first_block < 0 || row.num_blocks < 1 || row.num_blocks > batch_.num_blocks - row.first_block)
    throw Error(name + "its block table is outside the batch's blocks");
  if ((long)row.num_blocks * kKvBlock < (long)row.start + row.num_tokens)
    throw Error(name + std::to_string(row.num_blocks) + " blocks do not cover its tokens");
  if (choices(index) < 1 || choices(index) > row.num_tokens) throw Error(name + "more choices than tokens, or none");
  if (row.want < HR_WANT_EMBEDDING || (row.want >= 0 && row.want > batch_.num_samplings - choices(index)))
    throw Error(name + "bad sampling index");
  if (row.num_targets < 0 || row.num_targets > row.num_tokens) throw Error(name + "more targets than tokens");
  if (row.target_logprobs < 0 || row.target_logprobs > spec_.vocab) throw Error(name + "bad number of target logprobs");
  for (int j = 0; row.want >= 0 && j < choices(index); j++)
    if (batch_.samplings[row.want + j].logprobs > spec_.vocab) throw Error(name + "bad number of logprobs");
}

void Step::plan_tokens() {
  tokens_ = batch_.num_tokens;
  position_.resize(tokens_);
  row_of_.resize(tokens_);
  for (int i = 0; i < batch_.num_rows; i++) {
    const hr_row& row = batch_.rows[i];
    for (int j = 0; j < row.num_tokens; j++) {
      position_[row.first_token + j] = row.start + j;
      row_of_[row.first_token + j] = i;
    }
  }
}

// Tiles of up to kQueryRows query rows. One that would keep a thread busy while others wait is cut into its splits; the
// arithmetic is that of the splits either way.
void Step::plan_attention() {
  const int parts = (spec_.group() + kQueryRows - 1) / kQueryRows, heads = (spec_.group() + parts - 1) / parts;
  const int per_tile = std::max(1, kQueryRows / heads);
  long work = 0;
  for (int i = 0; i < batch_.num_rows; i++) {
    const hr_row& row = batch_.rows[i];
    kv_phase_ |= row.num_tokens > per_tile || parts > 1;
    for (int t = 0; t < row.num_tokens; t += per_tile)
      for (int head = 0; head < spec_.group(); head += heads) {
        const int n = std::min(per_tile, row.num_tokens - t), end = row.start + t + n;
        tiles_.push_back({i, row.first_token + t, n, head, std::min(heads, spec_.group() - head), 0, (end + kSplit - 1) / kSplit});
        work += (long)tiles_.back().end_split * spec_.kv_heads;
      }
  }
  const long share = work / (4L * model_.team.threads());
  // A row's heads one after another: a block's are neighbours in memory. A head's tiles share its keys and values.
  for (size_t from = 0, to = 0; from < tiles_.size(); from = to) {
    while (to < tiles_.size() && tiles_[to].row == tiles_[from].row) to++;
    for (int kv_head = 0; kv_head < spec_.kv_heads; kv_head++)
      for (size_t t = from; t < to; t++) plan_units((int)t, kv_head, tiles_[t].end_split > share);
  }
  const size_t bytes = (size_t)slots_ * sizeof(AttentionState);
  if (bytes > model_.split_states.size()) model_.split_states = Mapping(2 * bytes);
}

void Step::plan_units(int tile, int kv_head, bool cut) {
  const int splits = tiles_[tile].end_split;
  if (!cut || splits < 2) return units_.push_back({tile, kv_head, 0, splits, -1});
  cut_.push_back((long)units_.size());
  for (int s = 0; s < splits; s++) units_.push_back({tile, kv_head, s, s + 1, slots_++});
}

void Step::plan_logits() {
  long offset = 0;
  for (int i = 0, choice = 0; i < batch_.num_rows; i++) {
    const hr_row& row = batch_.rows[i];
    const int first = row.first_token + row.num_tokens - choices(i);
    for (int j = 0; j < choices(i); j++, choice++) {
      result_.row_token[choice] = -1;
      result_.row_status[choice] = HR_SAMPLE_OK;
      if (row.want == HR_WANT_GREEDY) greedy_.push_back({first + j, choice, -1, nullptr});
      if (row.want == HR_WANT_EMBEDDING && j + 1 == choices(i)) pooled_.push_back({first + j, choice});
      if (row.want < 0) continue;
      const int sampling = row.want + j, tops = std::max(0, batch_.samplings[sampling].logprobs);
      if (is_masked_greedy(batch_.samplings[sampling], spec_.vocab)) {
        greedy_.push_back({first + j, choice, sampling, batch_.samplings[sampling].mask});
        continue;
      }
      entries_.push_back({first + j, sampling, -1, sampling, tops, offset});
      offset += tops;
    }
  }
  for (int i = 0; i < batch_.num_rows; i++) {
    const hr_row& row = batch_.rows[i];
    for (int j = 0; j < row.num_targets; j++) {
      const int t = row.first_target + j;
      entries_.push_back({row.first_token + j, batch_.num_samplings + t, batch_.targets[t], -1, row.target_logprobs, offset});
      offset += row.target_logprobs;
    }
  }
}

}  // namespace hr
