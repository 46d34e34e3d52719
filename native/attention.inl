// Paged attention of up to kQueryRows query rows (a group of heads x some tokens) of one sequence over one split of its
// context, with online softmax in chunks of 64 tokens. Included after gemm.inl.
#pragma once

// One row's scores of one chunk (64 floats at s, position of the first: `first`) become weights, given to
// put(column, weights), and the row's state is brought to the new maximum. Masked tokens change nothing, bit for bit.
template <class Put>
static inline void softmax_row(const AttentionCall* call, AttentionState* state, int r, int first, const float* s, Put put) {
  const int low = call->low[r] - first, high = call->high[r] - first;
  const bool masked = low > 0 || high < kChunk;
  VF v[kChunk / W];
  // Scores are kept in units of log 2, for powers of 2.
  const float log2e = 1.44269504f, scale = call->softcap > 0 ? call->scale : call->scale * log2e;
  for (int i = 0; i < kChunk / W; i++) v[i] = load(s + i * W) * scale;
  if (call->softcap > 0)
    for (int i = 0; i < kChunk / W; i++) v[i] = call->softcap * log2e * vtanh(v[i] / call->softcap);
  if (masked)
    for (int i = 0; i < kChunk / W; i++) {
      VI at = lanes(i * W);
      v[i] = pick((at >= low) & (at < high), v[i], splat(kMasked));
    }
  VF mx = splat(kMasked);
  for (int i = 0; i < kChunk / W; i++) mx = vmax(v[i], mx);
  const float old = state->max[r], top = hmax(mx) > old ? hmax(mx) : old;
  if (top != old) {
    const float f = vexp2(splat(old - top))[0];
    float* acc = state->acc + (long)r * call->dp;
    for (int i = 0; i < call->dp; i += W) save(acc + i, load(acc + i) * f);
    state->sum[r] *= f;
    state->max[r] = top;
  }
  VF sum = {};
  for (int i = 0; i < kChunk / W; i++) {
    VF p = vexp2(v[i] - top);
    if (masked) {
      VI at = lanes(i * W);
      p = pick((at >= low) & (at < high), p, VF{});
    }
    put(i * W, p);
    sum += p;
  }
  state->sum[r] += hsum(sum);
}

static inline void reset(AttentionState* state, int rows, int dp) {
  for (int r = 0; r < kQueryRows; r++) state->max[r] = kMasked, state->sum[r] = 0.0f;
  for (long i = 0; i < (long)rows * dp; i += W) save(state->acc + i, VF{});
}

template <bool BF16>
static void attend_rows(const AttentionCall* call, AttentionState* state) {
  const int dp = call->dp, rows = call->rows;
  const long tile = BF16 ? 1024 : 2048, half = tile / 2;
  alignas(64) float s[kQueryRows * kChunk];
  reset(state, rows, dp);
  for (int first = call->begin; first < call->end; first += kChunk) {
    const int n = call->end - first < kChunk ? (call->end - first + kKvBlock - 1) / kKvBlock : kChunk / kKvBlock;
    const char* kv[kChunk / kKvBlock];
    for (int b = 0; b < n; b++) {
      kv[b] = call->kv + (long)call->blocks[first / kKvBlock + b] * call->block_stride;
      rows_of<BF16, RMAX, 1>(call->q, dp, rows, kv[b], dp / kTileK, kTileK, tile, s + b * 16, kChunk, false);
    }
    for (int r = 0; r < rows; r++) {
      float* row = s + r * kChunk;
      softmax_row(call, state, r, first, row, [row](int column, VF p) { save(row + column, p); });
    }
    for (int b = 0; b < n; b++)
      for (int j = 0; j < dp / 16; j++)
        rows_of<BF16, RMAX, 1>(s + b * 16, kChunk, rows, kv[b] + call->v_offset + j * half, 1, kKvBlock, 0,
                               state->acc + j * 16, dp, true);
  }
}

static void merge_rows(AttentionState* total, const AttentionState* part, int rows, int dp) {
  for (int r = 0; r < rows; r++) {
    const float a = total->max[r], b = part->max[r], top = a > b ? a : b;
    const float fa = vexp2(splat(a - top))[0], fb = vexp2(splat(b - top))[0];
    total->max[r] = top;
    total->sum[r] = total->sum[r] * fa + part->sum[r] * fb;
    float* t = total->acc + (long)r * dp;
    const float* p = part->acc + (long)r * dp;
    for (int i = 0; i < dp; i += W) save(t + i, load(t + i) * fa + load(p + i) * fb);
  }
}

template <bool ABF16>
static void finish_row(const AttentionState* state, int r, int dp, int dim, void* a, int k_tiles, int row, int column) {
  const float* acc = state->acc + (long)r * dp;
  const float inverse = 1.0f / state->sum[r];
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
