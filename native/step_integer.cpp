// From floats to the operands of integer products (integer.h).
#include <algorithm>

#include "integer.h"
#include "step.h"

namespace hr {

// Row `row` of an operand: the norm of a token's residual.
void Step::norm_to_integers(Walk& w, const float* weight, const Matrix& m, long token, char* a, long row) {
  float* x = w.scratch.row;
  std::fill(x + m.k_tiles * kTileK, x + m.byte_tiles() * kByteK, 0.0f);
  k_.norm(s_.residual + token * s_.hidden_ld, weight, spec_.hidden, spec_.norm_eps, x, m.k_tiles, 0);
  k_.quantise(x, m.byte_tiles(), model_.planes, a, (int)row);
}

const char* Step::operand(Walk& w, const Matrix& m, const char* a) {
  if (!m.integer) return a;
  float* x = w.scratch.row;
  std::fill(x + m.k_tiles * kTileK, x + m.byte_tiles() * kByteK, 0.0f);
  const auto quantise = [&](char* to, long t) {
    k_.row_of_a(a, m.k_tiles, (int)t, x);
    k_.quantise(x, m.byte_tiles(), model_.planes, to, (int)t);
  };
  if (tokens_ <= kFewRows) {
    for (long t = 0; t < tokens_; t++) quantise(w.scratch.a, t);
    return w.scratch.a;
  }
  for (long u; (u = claim(w, (tokens_ + 15) / 16)) >= 0;)
    for (long t = u * 16; t < std::min(tokens_, (u + 1) * 16); t++) quantise(s_.integers, t);
  end_phase(w);
  return s_.integers;
}

}  // namespace hr
