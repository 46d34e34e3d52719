// One model step: every thread runs `Step::run` and meets the others at the barriers between phases.
//
//   embed | per layer: norm, QKV | RoPE, KV write, attention | o + residual | norm, gate and up, activation |
//   down + residual | norm, lm_head, arg-max or logits | sampling
#pragma once
#include <vector>

#include "model.h"

namespace hr {

// Query rows of one attention call: `tokens` tokens of one run, `heads` heads of each group.
struct QueryTile {
  int row;         // of the batch
  int token;       // first, in the batch
  int tokens;
  int first_head, heads;  // within a group
  int first_split, end_split;
};

// A tile with one head of KV, or one split of it whose state goes to `slot`.
struct AttentionUnit {
  int tile, kv_head, first_split, end_split;
  long slot;  // -1: the unit is the whole tile
};

// A token after which the most likely one is wanted, of all or of those that a mask allows. `entry` indexes what hr_result
// has for samplings if it is one of these, else -1: then `choice` indexes the row_ arrays.
struct GreedyEntry {
  int token;  // in the batch
  int choice;
  int entry;
  const uint32_t* mask;
};

// A token whose hidden state is wanted. `choice` indexes hr_result's row_ arrays.
struct PooledEntry {
  int token;  // in the batch
  int choice;
};

// A row of logits that is written out: sampled from, or a target's logprob taken. `entry` indexes hr_result.
struct LogitEntry {
  int token;   // in the batch
  int entry;
  int target;  // the token whose logprob is wanted; -1: sample
  int sampling;
  int tops;    // alternatives asked for
  long top_offset;
};

// Asks for what is used soon, so that it waits in the second-level cache. Always inlined: gcc drops calls of a function that
// does nothing else.
__attribute__((always_inline)) inline void prefetch(const float* from, long n) {
  for (long i = 0; i < n; i += 16) __builtin_prefetch(from + i, 0, 2);
}

// Up to this many rows each thread norms all of them for itself: cheaper than one more barrier.
constexpr long kFewRows = 8;

class Step {
 public:
  // Checks the batch (throws Error) and plans the phases.
  Step(Model& model, const hr_batch& batch, const hr_result& result);
  void run();

 private:
  // One thread's walk through the phases; its copy of the phase counter.
  struct Walk {
    int thread;
    uint32_t phase;
    ThreadScratch& scratch;
    int tile_rows = 0;  // that attention is set up for
  };

  void check() const;
  void check_row(const hr_row& row, int index) const;
  int choices(int row) const { return batch_.num_choices ? batch_.num_choices[row] : 1; }
  void plan_tokens();
  void plan_attention();
  void plan_units(int tile, int kv_head, bool cut);
  void plan_logits();

  void walk(Walk& w);
  void end_phase(Walk& w) const;
  long claim(Walk& w, long units) const { return model_.team.claim(w.thread, w.phase, units); }
  void copy_blocks(Walk& w);
  void embed(Walk& w);
  void layer(Walk& w, int index);
  const char* normed(Walk& w, const float* weight, const Matrix& m);
  // The A operand that a matrix multiplies: `a`, or its integers.
  const char* operand(Walk& w, const Matrix& m, const char* a);
  void add_branch(Walk& w, const float* norm, float* branch);
  // A panel's tiles; of a quantised one, those of both halves or of one (0, 1), in the thread's scratch.
  const char* tiles(Walk& w, const Matrix& m, const Panel& panel, int half = -1) const;
  template <class Describe>
  void gemm(Walk& w, const Matrix& m, const char* a, long rows, Describe finish);
  template <class Describe>
  void gemm_integer(Walk& w, const Matrix& m, const char* a, long rows, Describe finish);
  void norm_to_integers(Walk& w, const float* weight, const Matrix& m, long token, char* a, long row);

  void write_kv_phase(Walk& w, int layer);
  void write_kv(Walk& w, int layer, int token, int kv_head);
  void attention(Walk& w, int layer);
  int first_seen(const Layer& l, const AttentionUnit& unit) const;
  void attend(Walk& w, int layer, const AttentionUnit& unit, const AttentionUnit* next);
  void merge_splits(const AttentionUnit& first);
  void finish_tile(const AttentionState& state, const QueryTile& tile, int kv_head);

  void embeddings(Walk& w);
  void logits(Walk& w);
  void logits_pass(Walk& w, long greedy, long first, long count);
  void choose_greedy(long i);
  void choose(Walk& w, long i, float* logits);

  Model& model_;
  const hr_batch& batch_;
  const hr_result& result_;
  const Kernels& k_;
  const Spec& spec_;
  const Scratch& s_;
  long tokens_ = 0;
  std::vector<int> position_, row_of_;  // per token
  std::vector<QueryTile> tiles_;
  std::vector<AttentionUnit> units_;
  std::vector<long> cut_;  // first unit of each tile and head that is cut into splits
  bool kv_phase_ = false;  // KV is written in a phase of its own, not by the one unit that reads it
  long slots_ = 0;
  std::vector<GreedyEntry> greedy_;
  std::vector<PooledEntry> pooled_;
  std::vector<LogitEntry> entries_;
};

}  // namespace hr
