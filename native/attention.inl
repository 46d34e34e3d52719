// Paged attention of up to kQueryRows query rows (a group of heads x some tokens) of one sequence over one split of its
// context, with online softmax in chunks. Included after gemm.inl.
#pragma once
#include "kv.inl"

// Each of N vectors becomes 2 to its power (what is beyond 127 only stays too large): precisely, or to about 1e-4, a sixteenth of what a bf16
// weight loses. All vectors together step by step, so that one's latency hides behind the others.
template <bool PRECISE, int N>
static inline __attribute__((always_inline)) void powers(VF* x) {
  VF r[N], p[N];
#if defined(__AVX512F__)
  for (int i = 0; i < N; i++) r[i] = _mm512_reduce_ps(x[i], 1);  // x - floor(x)
  const float precise[] = {2.161292068e-4f, 1.246784464e-3f, 9.675451554e-3f, 5.548528209e-2f, 2.402293086e-1f, 6.931470633e-1f};
  const float rough[] = {7.706708461e-2f, 2.276449502e-1f, 6.951168180e-1f};
#else
  VF t[N];
  for (int i = 0; i < N; i++) x[i] = vmin(splat(127.0f), vmax(splat(-125.0f), x[i]));
  for (int i = 0; i < N; i++) t[i] = x[i] + splat(12582912.0f);
  for (int i = 0; i < N; i++) r[i] = x[i] - (t[i] - splat(12582912.0f));  // from -0.5 to 0.5
  const float precise[] = {1.535336196e-4f, 1.339887502e-3f, 9.618437918e-3f, 5.550332367e-2f, 2.402264774e-1f, 6.931471825e-1f};
  const float rough[] = {5.500892922e-2f, 2.422109693e-1f, 6.932829022e-1f};
#endif
  const float* c = PRECISE ? precise : rough;
  for (int i = 0; i < N; i++) p[i] = vfma(splat(c[0]), r[i], splat(c[1]));
  for (int j = 2; j < (PRECISE ? 6 : 3); j++)
    for (int i = 0; i < N; i++) p[i] = vfma(p[i], r[i], splat(c[j]));
  for (int i = 0; i < N; i++) p[i] = vfma(p[i], r[i], splat(1.0f));
#if defined(__AVX512F__)
  for (int i = 0; i < N; i++) x[i] = _mm512_scalef_ps(p[i], x[i]);
#else
  for (int i = 0; i < N; i++) x[i] = (VF)((VU)p[i] + ((VU)t[i] << 23));
#endif
}

// What turns the products of a chunk into scores in units of log 2, and weights into those that values take.
struct Scales {
  float score;  // of every token
  alignas(64) float k[kChunk], v[kChunk];  // of 8-bit tokens, k times `score`
};

// Weights are taken relative to 2^0, or to the base that the row has, as long as their sums stay between these: far from
// what a float holds, so that all but odd models never need another base.
constexpr float kMostWeight = 0x1p30f, kLeastWeight = 0x1p-60f;

enum { kStride = W == 16 ? 4 : 2 };  // vectors of a row that are computed together; a multiple of 2, as is all below

// Products get(row, column) of rows r to r + R - 1 with a chunk (of which `tokens` are there) become weights, given to
// put(row, column, kStride vectors of them). False for a row whose weights need another base; nothing of it has changed
// then.
template <bool PRECISE, bool EIGHT, bool MASKED, int R, class Get, class Put>
static inline __attribute__((always_inline)) void weigh(const Scales& scales, AttentionState* state, int r, int low, int high,
                                                        int tokens, Get get, Put put, bool* good) {
  VF sum[R], down[R];
  for (int k = 0; k < R; k++) {
    sum[k] = VF{};
    down[k] = splat(state->base[r + k] > kMasked ? -state->base[r + k] : 0.0f);
  }
  for (int i = 0; i < (MASKED ? tokens : kChunk); i += kStride * W) {
    VF x[R * kStride];
    for (int k = 0; k < R; k++)
      for (int j = 0; j < kStride; j++) {
        const int at = i + j * W;
        x[k * kStride + j] = vfma(get(k, at), EIGHT ? load(scales.k + at) : splat(scales.score), down[k]);
      }
    powers<PRECISE, R * kStride>(x);
    for (int k = 0; k < R; k++) {
      VF* p = x + k * kStride;
      for (int j = 0; MASKED && j < kStride; j++) {
        const VI at = lanes(0) + (i + j * W);
        p[j] = pick((at >= low) & (at < high), p[j], VF{});
      }
      for (int j = 0; j < kStride; j++) sum[k] += p[j];
      for (int j = 0; EIGHT && j < kStride; j++) p[j] *= load(scales.v + i + j * W);
      put(k, i, p);
    }
  }
  for (int k = 0; k < R; k++) {
    float *sums = state->sum + (r + k) * 16, *base = state->base + r + k;
    const bool fresh = *base <= kMasked;
    good[k] = all_below(sum[k], kMostWeight) && !(fresh && !(hmax(sum[k]) > kLeastWeight));
    if (!good[k]) continue;
    save(sums, load(sums) + sum[k]);
    if (fresh) *base = 0.0f;
  }
}

// The same with the largest score as base, where that is larger than the row's; and soft caps.
template <bool PRECISE, bool EIGHT, class Get, class Put>
static void weigh_from_top(const AttentionCall* call, const Scales& scales, AttentionState* state, int r, int low, int high,
                           int tokens, Get get, Put put) {
  const float cap = call->softcap * 1.44269504f;
  VF x[kChunk / W], most = splat(kMasked), sum = {};
  for (int i = 0; i < kChunk / W; i++) {
    const VI at = lanes(0) + i * W;
    x[i] = get(0, i * W) * (EIGHT ? load(scales.k + i * W) : splat(scales.score));
    if (cap > 0) x[i] = cap * vtanh(x[i] / cap);
    x[i] = pick((at >= low) & (at < high), x[i], splat(kMasked));
    most = vmax(x[i], most);
  }
  const float top = hmax(most), old = state->base[r];
  float* sums = state->sum + r * 16;
  if (top > old) {
    const VF f = vexp2(splat(old - top));
    float* acc = state->acc + (long)r * call->dp;
    for (int i = 0; i < call->dp; i += W) save(acc + i, load(acc + i) * f);
    save(sums, load(sums) * f);
    state->base[r] = top;
  }
  for (int i = 0; i < kChunk / W; i++) x[i] -= state->base[r];
  for (int i = 0; i < kChunk / W; i += kStride) powers<PRECISE, kStride>(x + i);
  for (int i = 0; i < kChunk / W; i++) {
    const VI at = lanes(0) + i * W;
    x[i] = pick((at >= low) & (at < high), x[i], VF{});
    sum += x[i];
    if (EIGHT) x[i] *= load(scales.v + i * W);
  }
  for (int i = 0; i < tokens / W; i += kStride) put(0, i * W, x + i);
  save(sums, load(sums) + sum);
}

// Products of `rows` rows from r on with a chunk (first position `first`) become weights and the rows' state takes them
// in. Masked tokens change nothing, bit for bit; which way a row takes depends on that row and the chunk alone.
template <bool PRECISE, bool EIGHT, class Get, class Put>
static inline __attribute__((always_inline)) void softmax_rows(const AttentionCall* call, const Scales& scales,
                                                               AttentionState* state, int r, int rows, int first, int tokens,
                                                               Get get, Put put) {
  constexpr int R = W == 16 ? 2 : 1;
  const auto all = [&](int i) { return call->low[i] <= first && call->high[i] >= first + kChunk; };
  for (int k = 0; k < rows;) {
    const int i = r + k, low = call->low[i] - first, high = call->high[i] - first;
    const auto get_from = [=](int row, int column) { return get(k + row, column); };
    const auto put_from = [=](int row, int column, const VF* p) { put(k + row, column, p); };
    bool good[R] = {};
    int done = 1;
    if (high <= 0 || low >= kChunk) {
      const VF none[kStride] = {};
      for (int c = 0; c < tokens; c += kStride * W) put(k, c, none);
      good[0] = true;
    } else if (call->softcap != 0) {
    } else if (!all(i)) {
      weigh<PRECISE, EIGHT, true, 1>(scales, state, i, low, high, tokens, get_from, put_from, good);
    } else if (R > 1 && (k + 1 == rows || !all(i + 1))) {
      weigh<PRECISE, EIGHT, false, 1>(scales, state, i, low, high, tokens, get_from, put_from, good);
    } else {
      weigh<PRECISE, EIGHT, false, R>(scales, state, i, low, high, tokens, get_from, put_from, good);
      done = R;
    }
    for (int j = 0; j < done; j++)
      if (!good[j])
        weigh_from_top<PRECISE, EIGHT>(call, scales, state, i + j, call->low[i + j] - first, call->high[i + j] - first, tokens,
                                       [=](int, int c) { return get(k + j, c); },
                                       [=](int, int c, const VF* p) { put(k + j, c, p); });
    k += done;
  }
}

static inline void reset(AttentionState* state, int rows, int dp) {
  for (int r = 0; r < rows; r++) state->base[r] = kMasked;
  for (long i = 0; i < rows * 16; i += W) save(state->sum + i, VF{});
  for (long i = 0; i < (long)rows * dp; i += W) save(state->acc + i, VF{});
}

// K and V of the blocks of the chunk that begins at `first`, and 8-bit ones' scales. Returns how many there are.
template <bool EIGHT>
static inline int chunk_blocks(const AttentionCall* call, int first, const char** k, const char** v, Scales* scales) {
  const long codes = (long)call->dp * kKvBlock;
  const int left = (call->end - first + kKvBlock - 1) / kKvBlock, n = left < kChunk / kKvBlock ? left : kChunk / kKvBlock;
  for (int b = 0; b < n; b++) {
    k[b] = call->kv + (long)call->blocks[first / kKvBlock + b] * call->block_stride;
    v[b] = k[b] + call->v_offset;
    for (int i = 0; EIGHT && i < kKvBlock; i += W) {
      save(scales->k + b * kKvBlock + i, load((const float*)(k[b] + codes) + i) * scales->score);
      save(scales->v + b * kKvBlock + i, load((const float*)(v[b] + codes) + i));
    }
  }
  return n;
}

// The codes of n blocks become K and V as they are when not in 8 bits.
template <bool BF16>
static inline void expand_blocks(const AttentionCall* call, int n, const char** k, const char** v) {
  const long codes = (long)call->dp * kKvBlock, bytes = codes * (BF16 ? 2 : 4);
  char* tiles = call->tiles;
  for (int b = 0; b < n; b++, tiles += 2 * bytes) {
    expand_codes<BF16>(k[b], codes, tiles);
    expand_codes<BF16>(v[b], codes, tiles + bytes);
    k[b] = tiles;
    v[b] = tiles + bytes;
  }
}

// How many of a chunk's n blocks any of the rows r to r + m - 1 sees; the others are masked for all of them.
static inline int seen_blocks(const AttentionCall* call, int r, int m, int first, int n) {
  const int seen = (call->high[r + m - 1] - first + kKvBlock - 1) / kKvBlock;  // high and low only grow
  if (call->low[r] >= first + kChunk || seen <= 0) return 0;
  return seen < n ? seen : n;
}

template <bool BF16, bool EIGHT>
static void attend_rows(const AttentionCall* call, AttentionState* state) {
  const int dp = call->dp, rows = call->rows;
  const long tile = BF16 ? 1024 : 2048, half = tile / 2;
  alignas(64) float s[16 * kChunk], p[16 * kChunk];
  Scales scales;
  scales.score = call->scale * 1.44269504f;
  reset(state, rows, dp);
  for (int first = call->begin; first < call->end; first += kChunk) {
    const char *k[kChunk / kKvBlock], *v[kChunk / kKvBlock];
    const int blocks = chunk_blocks<EIGHT>(call, first, k, v, &scales);
    if (EIGHT) expand_blocks<BF16>(call, blocks, k, v);
    for (int group = 0; group < rows; group += 16) {
      const int m = rows - group < 16 ? rows - group : 16;
      const int n = seen_blocks(call, group, m, first, blocks), tokens = (n + n % 2) * kKvBlock;
      if (n == 0) continue;
      float* acc = state->acc + (long)group * dp;
      for (int b = 0; b < n; b++)
        rows_of<BF16, RMAX, 1>(call->q + (long)group * dp, dp, m, k[b], dp / kTileK, kTileK, tile, s + b * 16, kChunk, false);
      const float* products = s;
      float* weights = p;
      softmax_rows<!BF16, EIGHT>(
          call, scales, state, group, m, first, tokens, [=](int r, int i) { return load(products + r * kChunk + i); },
          [=](int r, int i, const VF* w) {
            for (int j = 0; j < kStride; j++) save(weights + r * kChunk + i + j * W, w[j]);
          });
      for (int b = 0; b < n; b++)
        for (int j = 0; j < dp / 16; j++)
          rows_of<BF16, RMAX, 1>(p + b * 16, kChunk, m, v[b] + j * half, 1, kKvBlock, 0, acc + j * 16, dp, true);
    }
  }
}

static void merge_rows(AttentionState* total, const AttentionState* part, int rows, int dp) {
  for (int r = 0; r < rows; r++) {
    const float a = total->base[r], b = part->base[r], top = a > b ? a : b;
    const VF fa = vexp2(splat(a - top)), fb = vexp2(splat(b - top));  // mostly exactly 1
    total->base[r] = top;
    float *sum = total->sum + r * 16, *acc = total->acc + (long)r * dp;
    const float *more = part->sum + r * 16, *values = part->acc + (long)r * dp;
    save(sum, load(sum) * fa + load(more) * fb);
    for (int i = 0; i < dp; i += W) save(acc + i, load(acc + i) * fa + load(values + i) * fb);
  }
}

template <bool ABF16>
static void finish_row(const AttentionState* state, int r, int dp, int dim, void* a, int k_tiles, int row, int column) {
  const float* acc = state->acc + (long)r * dp;
  const float inverse = 1.0f / hsum(load(state->sum + r * 16));
  int i = 0;
  if (column % 16 == 0)
    for (; i + 16 <= dim; i += 16)
      for (int v = 0; v < 16; v += W) save_a<ABF16>(a, k_tiles, row, column + i + v, load(acc + i + v) * inverse);
  for (; i < dim; i++) {  // head sizes that are not a multiple of 16
    const int c = column + i;
    if (ABF16)
      ((uint16_t*)a)[((long)(row / 16) * k_tiles + c / kTileK) * 512 + (row % 16) * 32 + c % kTileK] = bf16(acc[i] * inverse);
    else
      ((float*)a)[(long)row * k_tiles * kTileK + c] = acc[i] * inverse;
  }
}
