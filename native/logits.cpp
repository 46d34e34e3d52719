// The end of a step: hidden states and logits of the rows that need them, and the choice of tokens.
#include <stdint.h>

#include <algorithm>
#include <cmath>

#include "step_gemm.h"

namespace hr {

// Needs no phase of its own: nothing else writes what it reads.
void Step::embeddings(Walk& w) {
  for (size_t i = w.thread; i < pooled_.size(); i += model_.team.threads()) {
    const float* hidden = s_.residual + pooled_[i].token * s_.hidden_ld;
    std::vector<float> normed(s_.hidden_ld);
    k_.norm_add(hidden, model_.final_norm, spec_.hidden, spec_.norm_eps, normed.data());
    bool finite = true;
    for (int j = 0; j < spec_.hidden; j++) finite &= std::isfinite(normed[j]);
    if (!finite) result_.row_status[pooled_[i].choice] = HR_SAMPLE_NOT_FINITE;
    std::copy_n(normed.data(), spec_.hidden, result_.embeddings + i * spec_.hidden);
  }
}

// Greedy rows keep a running arg-max and never write logits. The others are taken in passes of bounded memory; the
// first pass has the greedy rows too.
void Step::logits(Walk& w) {
  const long greedy = (long)greedy_.size(), entries = (long)entries_.size();
  if (!greedy && !entries) return;
  long first = 0;
  do {
    const long count = std::min(s_.logit_rows, entries - first);
    logits_pass(w, first ? 0 : greedy, first, count);
    first += count;
  } while (first < entries);
}

// Rows of the pass: `greedy` greedy rows, then `count` entries from `first` on.
void Step::logits_pass(Walk& w, long greedy, long first, long count) {
  const Matrix& m = model_.lm_head;
  const long rows = greedy + count, ld = s_.logit_ld;
  for (long i; (i = claim(w, rows)) >= 0;) {
    const long token = i < greedy ? greedy_[i].token : entries_[first + i - greedy].token;
    if (m.integer)
      norm_to_integers(w, model_.final_norm, m, token, s_.integers, i);
    else
      k_.norm_to_a(s_.residual + token * s_.hidden_ld, model_.final_norm, spec_.hidden, spec_.norm_eps, s_.a_hidden,
                   m.k_tiles, (int)i);
  }
  for (long i = 0; i < greedy; i++) {
    w.scratch.best[i].mask = greedy_[i].mask;
    for (int j = 0; j < kTileN; j++) {
      w.scratch.best[i].value[j] = -INFINITY;
      w.scratch.best[i].index[j] = INT32_MAX;
      w.scratch.best[i].bad[j] = 0;
    }
  }
  end_phase(w);
  gemm(w, m, m.integer ? s_.integers : s_.a_hidden, rows, [&](const float* c, int n, long row, long column) {
    const int plain = (int)std::clamp<long>(greedy - row, 0, n);
    Finish f;
    f.c = c;
    f.count = plain;
    f.rows = k_.argmax;
    f.column = (int)column;
    f.valid = spec_.vocab;
    f.softcap = spec_.logit_softcap;
    f.best = w.scratch.best + row;
    if (plain == n) return f;
    if (plain) f.rows(&f, 0, plain);
    f.c = c + plain * kPanelN;
    f.count = n - plain;
    f.rows = k_.store;
    f.out = s_.logits + (row + plain - greedy) * ld + column;
    f.ld = ld;
    return f;
  });
  end_phase(w);
  for (long i; (i = claim(w, rows)) >= 0;) {
    if (i < greedy)
      choose_greedy(i);
    else
      choose(w, first + i - greedy, s_.logits + (i - greedy) * ld);
  }
  end_phase(w);
}

// The best of all threads' columns: highest logit, lowest id among equals.
void Step::choose_greedy(long i) {
  float value = -INFINITY;
  int32_t index = INT32_MAX;
  bool bad = false;
  for (const ThreadScratch* t : model_.threads)
    for (int j = 0; j < kTileN; j++) {
      const ArgMax& best = t->best[i];
      bad |= best.bad[j] != 0;
      if (best.value[j] > value || (best.value[j] == value && best.index[j] < index)) {
        value = best.value[j];
        index = best.index[j];
      }
    }
  const GreedyEntry& g = greedy_[i];
  const int status = bad ? HR_SAMPLE_NOT_FINITE : index == INT32_MAX ? HR_SAMPLE_ALL_BANNED : HR_SAMPLE_OK;
  (g.entry < 0 ? result_.row_status[g.choice] : result_.status[g.entry]) = status;
  (g.entry < 0 ? result_.row_token[g.choice] : result_.token[g.entry]) = status ? -1 : index;
  if (g.entry < 0) return;
  result_.rank[g.entry] = 1;
  result_.top_count[g.entry] = 0;
  result_.logprob[g.entry] = 0.0f;
}

void Step::choose(Walk& w, long i, float* logits) {
  const LogitEntry& e = entries_[i];
  if (spec_.logit_softcap > 0) k_.softcap(logits, s_.logit_ld, spec_.logit_softcap);
  hr_choice choice{result_.top_ids + e.top_offset, result_.top_logprobs + e.top_offset, -1, 0, 0.0f, 0};
  const int status = e.target < 0
                         ? hr_sample(logits, spec_.vocab, &batch_.samplings[e.sampling], w.scratch.sampler, &choice)
                         : hr_token_logprobs(logits, spec_.vocab, e.target, e.tops, w.scratch.sampler, &choice);
  result_.status[e.entry] = status;
  result_.token[e.entry] = status ? -1 : choice.token;
  result_.rank[e.entry] = choice.rank;
  result_.top_count[e.entry] = status ? 0 : choice.top_count;
  result_.logprob[e.entry] = choice.logprob;
}

}  // namespace hr
