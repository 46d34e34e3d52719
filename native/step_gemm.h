// The linear-layer phase of a step, for the files that run one.
#pragma once
#include <algorithm>

#include "integer.h"
#include "step.h"

namespace hr {

// How a product is cut so that what is used again is in cache. A unit of work is `rows` rows by `panels` panels. A part of k
// (`k_tiles`) at a time: a panel's part stays in the first-level cache for all rows, and the rows' part of A in the second
// for all panels.
struct Cut {
  long rows, k_tiles, panels;
};

inline Cut cut_product(long rows, long k_tiles, long row_bytes, bool dense) {
  const long second_level = 1 << 20, few = 20, part = 16, enough = 256;
  const auto even = [](long n, long most) { return (n + (n + most - 1) / most - 1) / ((n + most - 1) / most); };
  const long fit = std::min<long>(kProductRows, second_level / row_bytes);  // rows whose whole A stays
  if (rows <= kRowBlock || k_tiles <= few || !dense)
    return {round_up(even(rows, std::max<long>(kRowBlock, fit / kRowBlock * kRowBlock)), kRowBlock), k_tiles, 1};
  if (fit >= std::min(rows, enough)) return {round_up(even(rows, fit / kRowBlock * kRowBlock), kRowBlock), even(k_tiles, part), 1};
  const long some = round_up(even(rows, enough), kRowBlock);
  return {some, even(k_tiles, part), kProductRows / some};
}

inline void finish_block(const Finish& finish) { finish.rows(&finish, 0, finish.count); }

// The product of A (`rows` rows) and m; finish(c, rows, first row, first column) says what becomes of each block.
template <class Describe>
void Step::gemm(Walk& w, const Matrix& m, const char* a, long rows, Describe finish) {
  if (m.integer) return gemm_integer(w, m, a, rows, finish);
  const long row_bytes = (long)m.k_tiles * kTileK * model_.a_element(), a_tile = k_.a_bf16 ? 1024 : kTileK * 4;
  const long b_tile = (long)kTileK * kPanelN * model_.element();
  const long panels = (long)m.panels.size();
  const Cut cut = cut_product(rows, m.k_tiles, row_bytes, m.panels.front().dense() && m.panels.back().dense());
  const long row_groups = (rows + cut.rows - 1) / cut.rows, panel_groups = (panels + cut.panels - 1) / cut.panels;
  // A block is finished while the next one is multiplied: vectors work beside tiles.
  Finish waiting;
  GemmCall call;
  call.group = 16 * row_bytes;
  const auto finish_waiting = [&] {
    if (waiting.rows) finish_block(waiting);
    waiting.rows = nullptr;
  };
  k_.enter_gemm((int)std::min<long>(rows, kRowBlock));
  for (long u; (u = claim(w, row_groups * panel_groups)) >= 0;) {
    const long first = u / panel_groups * cut.rows, end = std::min(rows, first + cut.rows);
    const long first_panel = u % panel_groups * cut.panels, end_panel = std::min(panels, first_panel + cut.panels);
    for (long k = 0; k < m.k_tiles; k += cut.k_tiles)
      for (long p = first_panel; p < end_panel; p++) {
        const Panel& panel = m.panels[p];
        if (rows <= k_.strip_rows && !panel.dense()) {
          finish_waiting();
          k_.gemm_strips(a, (int)rows, panel.strips, m.k_tiles, w.scratch.c);
          finish_block(finish(w.scratch.c, (int)rows, 0, p * kPanelN));
          continue;
        }
        call.panel = tiles(w, m, panel) + k * b_tile;
        call.k_tiles = (int)std::min(cut.k_tiles, m.k_tiles - k);
        call.more = k > 0;
        const bool last = k + call.k_tiles == m.k_tiles;
        // Each block of rows fetches its share of the panel, or part of one, that comes next: memory works meanwhile. One
        // block alone fetches a little ahead of what it reads.
        const long blocks = (end - first + kRowBlock - 1) / kRowBlock, part = call.k_tiles * b_tile;
        const long share = panel.dense() ? (b_tile / 64 + blocks - 1) / blocks : 0;  // cache lines for each k tile
        long left = part / 64;
        if (blocks == 1)
          call.ahead = (const char*)call.panel + kFetchAhead;
        else
          call.ahead = p + 1 < end_panel ? m.panels[p + 1].tiles() + k * b_tile : (const char*)call.panel + part;
        for (long row = first; row < end; row += kRowBlock) {
          call.a = a + row * row_bytes + k * a_tile;
          call.rows = (int)std::min<long>(kRowBlock, end - row);
          const bool whole = cut.k_tiles == m.k_tiles;  // then each block takes the place of the one just finished
          call.c = w.scratch.c + (whole ? 0 : (p - first_panel) * cut.rows + row - first) * kPanelN;
          call.before = waiting.rows ? &waiting : nullptr;
          call.lines = (int)std::min(share, left / call.k_tiles);
          k_.gemm(&call);
          call.ahead = (const char*)call.ahead + (long)call.lines * call.k_tiles * 64;
          left -= (long)call.lines * call.k_tiles;
          waiting.rows = nullptr;
          if (!last) continue;
          const Finish f = finish(call.c, call.rows, row, p * kPanelN);
          if (k_.overlaps && rows > kRowBlock) {  // with few rows memory is the limit
            waiting = f;
            for (int r = 0; f.rows == k_.add && r < f.count; r++) prefetch(f.out + r * f.ld, kPanelN);
          } else {
            finish_block(f);
          }
        }
      }
  }
  finish_waiting();
}

// The same with integers.
template <class Describe>
void Step::gemm_integer(Walk& w, const Matrix& m, const char* a, long rows, Describe finish) {
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
      finish_block(finish(c, (int)rows, 0, u * kPanelN));
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
      finish_block(finish(c, n, row, u % panels * kPanelN));
      ahead += (long)lines * tiles * 64 * ((n + few - 1) / few);
    }
  }
}

}  // namespace hr
