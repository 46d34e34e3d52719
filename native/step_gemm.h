// The linear-layer phase of a step, for the files that run one.
#pragma once
#include <algorithm>

#include "step.h"

namespace hr {

// Calls epilogue(c, rows, first row, first column) for every block of the product of A (`rows` rows) and m.
// A unit of work is one panel by as many rows as stay in the second-level cache: a panel is read from memory once, and
// its rows' A comes from cache for every panel.
template <class Epilogue>
void Step::gemm(Walk& w, const Matrix& m, const char* a, long rows, Epilogue epilogue) {
  const long cache = 1 << 20, row_bytes = (long)m.k_tiles * kTileK * model_.a_element();
  const long some = std::max<long>(kRowBlock, cache / row_bytes / kRowBlock * kRowBlock);
  const long row_groups = (rows + some - 1) / some;
  float* c = w.scratch.c;
  k_.enter_gemm((int)std::min<long>(rows, kRowBlock));
  for (long u; (u = claim(w, row_groups * m.panels())) >= 0;) {
    const long panel = u % m.panels(), first = u / m.panels() * some, end = std::min(rows, first + some);
    // With several row blocks to a panel, each fetches its share of the next panel: memory works while they compute.
    const long blocks = (end - first + kRowBlock - 1) / kRowBlock, panel_lines = (long)m.panel_bytes() / 64;
    const int lines = blocks < 2 ? 0 : (int)(panel_lines / m.k_tiles / blocks);
    const char* ahead = m.panel(panel + 1);
    for (long row = first; row < end; row += kRowBlock, ahead += (long)lines * m.k_tiles * 64) {
      const int n = (int)std::min<long>(kRowBlock, end - row);
      k_.gemm(a + row * row_bytes, n, m.panel(panel), m.k_tiles, c, ahead, lines);
      epilogue(c, n, row, panel * kPanelN);
    }
  }
}

}  // namespace hr
