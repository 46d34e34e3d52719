// The linear-layer phase of a step, for the files that run one.
#pragma once
#include <algorithm>

#include "integer.h"
#include "step.h"

namespace hr {

// Calls epilogue(c, rows, first row, first column) for every block of the product of A (`rows` rows) and m.
// A unit of work is one panel by as many rows as stay in the second-level cache: a panel is read from memory once, and
// its rows' A comes from cache for every panel.
template <class Epilogue>
void Step::gemm(Walk& w, const Matrix& m, const char* a, long rows, Epilogue epilogue) {
  if (m.integer) return gemm_integer(w, m, a, rows, epilogue);
  const long cache = 1 << 20, row_bytes = (long)m.k_tiles * kTileK * model_.a_element();
  const long some = std::max<long>(kRowBlock, cache / row_bytes / kRowBlock * kRowBlock);
  const long row_groups = (rows + some - 1) / some;
  float* c = w.scratch.c;
  k_.enter_gemm((int)std::min<long>(rows, kRowBlock));
  const long panels = (long)m.panels.size();
  for (long u; (u = claim(w, row_groups * panels)) >= 0;) {
    const Panel& panel = m.panels[u % panels];
    const long first = u / panels * some, end = std::min(rows, first + some);
    if (rows <= kRowBlock && !panel.dense() && k_.gemm_strips) {
      k_.gemm_strips(a, (int)rows, panel.strips, m.k_tiles, c);
      epilogue(c, (int)rows, 0, u * kPanelN);
      continue;
    }
    const char* b = tiles(w, m, panel);
    // With several row blocks to a panel, each fetches its share of the next panel: memory works while they compute.
    const long blocks = (end - first + kRowBlock - 1) / kRowBlock, panel_lines = panel.bytes / 64;
    const int lines = blocks < 2 || !panel.dense() ? 0 : (int)(panel_lines / m.k_tiles / blocks);
    const char* ahead = b + panel.bytes;
    for (long row = first; row < end; row += kRowBlock, ahead += (long)lines * m.k_tiles * 64) {
      const int n = (int)std::min<long>(kRowBlock, end - row);
      k_.gemm(a + row * row_bytes, n, b, m.k_tiles, c, ahead, lines);
      epilogue(c, n, row, u % panels * kPanelN);
    }
  }
}

// The same with integers.
template <class Epilogue>
void Step::gemm_integer(Walk& w, const Matrix& m, const char* a, long rows, Epilogue epilogue) {
  const int planes = model_.planes, tiles = m.byte_tiles();
  const long cache = 1 << 20, group = integer_group_bytes(tiles, planes);
  const long some = std::max<long>(kRowBlock, cache / group * 16 / kRowBlock * kRowBlock);
  const long row_groups = (rows + some - 1) / some, few = planes == 1 ? 32 : 16;
  float* c = w.scratch.c;
  k_.enter_integer((int)std::min<long>(rows, kRowBlock), planes);
  const long panels = (long)m.panels.size();
  for (long u; (u = claim(w, row_groups * panels)) >= 0;) {
    const Panel& panel = m.panels[u % panels];
    const long first = u / panels * some, end = std::min(rows, first + some);
    Strip strips[2] = {panel.strips[0], panel.strips[1]};
    const bool bytes = strips[0].format == kBytes && strips[1].format == kBytes;
    if (!bytes && rows <= few && k_.gemm_nibbles) {
      k_.gemm_nibbles(a, (int)rows, planes, strips, tiles, c);
      epilogue(c, (int)rows, 0, u * kPanelN);
      continue;
    }
    for (int i = 0; i < 2 && !bytes; i++) {
      char* to = w.scratch.panel + i * integer_strip_bytes(kBytes, tiles);
      k_.expand_integer(strips + i, tiles, to);
      strips[i] = {to, kBytes, 0};
    }
    // Each block of rows fetches its share of the next panel.
    const long blocks = (end - first + few - 1) / few, panel_lines = panel.bytes / 64;
    const int lines = bytes ? (int)(panel_lines / tiles / blocks) : 0;
    const char* ahead = strips[0].data + panel.bytes;
    for (long row = first; row < end; row += kRowBlock) {
      const int n = (int)std::min<long>(kRowBlock, end - row);
      k_.gemm_integer(a + row / 16 * group, n, planes, strips, tiles, c, ahead, lines);
      epilogue(c, n, row, u % panels * kPanelN);
      ahead += (long)lines * tiles * 64 * ((n + few - 1) / few);
    }
  }
}

}  // namespace hr
