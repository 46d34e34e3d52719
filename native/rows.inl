// Row-wise kernels: norms, epilogues, RoPE, KV writes, packing. Included after simd.inl.
#pragma once

// Where 16-column groups of the A operand are: bf16 tiles or fp32 rows (kernels.h).
template <bool ABF16>
static inline void save_a(void* a, int k_tiles, int row, int column, VF v) {
  if (ABF16)
    save_bf16((uint16_t*)a + ((long)(row / 16) * k_tiles + column / kTileK) * 512 + (row % 16) * 32 + column % kTileK, v);
  else
    save((float*)a + (long)row * k_tiles * kTileK + column, v);
}

// 1 / rms. Where the squares overflow it is NaN, which ends the row in an error; 1 / inf would zero it in silence.
static inline float inverse_rms(const float* x, int n, float eps) {
  VF s0 = {}, s1 = {};
  int i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    VF a = load(x + i), b = load(x + i + W);
    s0 = vfma(a, a, s0);
    s1 = vfma(b, b, s1);
  }
  float tail = 0.0f;
  for (; i < n; i++) tail += x[i] * x[i];
  const float sum = hsum(s0 + s1) + tail;
  return 1.0f / __builtin_sqrtf(sum / (float)n + eps) + (sum - sum);
}

template <bool ABF16>
static void norm_to_a(const float* x, const float* weight, int n, float eps, void* a, int k_tiles, int row) {
  const VF scale = splat(inverse_rms(x, n, eps));
  for (int i = 0; i < k_tiles * kTileK; i += W) save_a<ABF16>(a, k_tiles, row, i, load(x + i) * scale * load(weight + i));
}

static void norm_add(const float* x, const float* weight, int n, float eps, float* out) {
  const VF scale = splat(inverse_rms(x, n, eps));
  for (int i = 0; i < n; i += W) save(out + i, load(out + i) + load(x + i) * scale * load(weight + i));
}

// What becomes of a product. `f` is copied, or the compiler would read it again after each store, which might have changed it.
static void store_c(const Finish* finish, int first, int end) {
  const Finish f = *finish;
  for (int r = first; r < end; r++) {
    const float* c = f.c + r * kPanelN;
    float* out = f.out + r * f.ld;
    for (int i = 0; i < kPanelN; i += W) save(out + i, f.bias ? load(c + i) + load(f.bias + i) : load(c + i));
  }
}

static void add_c(const Finish* finish, int first, int end) {
  const Finish f = *finish;
  for (int r = first; r < end; r++) {
    const float* c = f.c + r * kPanelN;
    float* out = f.out + r * f.ld;
    for (int i = 0; i < kPanelN; i += W) {
      VF v = f.bias ? load(c + i) + load(f.bias + i) : load(c + i);
      save(out + i, load(out + i) + v);
    }
  }
}

// Columns 0..15 of c are 16 gates, 16..31 the matching ups.
template <bool ABF16>
static void gate_c(const Finish* finish, int first, int end) {
  const Finish f = *finish;
  for (int r = first; r < end; r++) {
    const float* c = f.c + r * kPanelN;
    for (int i = 0; i < kTileN; i += W) {
      const VF g = load(c + i), act = f.gelu ? vgelu(g) : ABF16 ? vsilu_rough(g) : vsilu(g);
      save_a<ABF16>(f.a, f.k_tiles, f.row + r, f.column + i, act * load(c + kTileN + i));
    }
  }
}

static void softcap_row(float* x, long n, float cap) {
  for (long i = 0; i < n; i += W) save(x + i, cap * vtanh(load(x + i) / cap));
}

// Whether no column of a block's row reaches the row's best so far: so it is nearly always, but for the first panels. False
// where there is a NaN or +inf.
static inline bool nothing_better(const float* c, const ArgMax* best) {
  bool below = true;
  for (int i = 0; i < kPanelN; i += W) below &= all_below(load(c + i) - load(best->value + i % kTileN), 0.0f);
  return below;
}

static void argmax_c(const Finish* f, int first, int end) {
  const float softcap = f->softcap;
  for (int r = first; r < end; r++) {
    const float* c = f->c + r * kPanelN;
    ArgMax* best = f->best + r;
    if (softcap <= 0 && nothing_better(c, best)) continue;
    const uint32_t word = best->mask ? best->mask[f->column / kPanelN] : ~0u;
    if (!word) continue;
    for (int half = 0; half < kPanelN; half += kTileN)
      for (int i = 0; i < kTileN; i += W) {
        VF v = load(c + half + i);
        if (softcap > 0) v = softcap * vtanh(v / softcap);
        VI at = lanes(f->column + half + i), inside = at < f->valid;
        if (best->mask) inside &= (VI)(((VU{} + word) >> (VU)lanes(half + i)) & 1u) == 1;
        VF old = load(best->value + i);
        VI old_at = *(VI*)(best->index + i);
        VI better = ((v > old) | ((v == old) & (at < old_at))) & inside;
        save(best->value + i, pick(better, v, old));
        *(VI*)(best->index + i) = (better & at) | (~better & old_at);
        *(VI*)(best->bad + i) |= ~(v < splat(__builtin_inff())) & inside;
      }
  }
}

static void head(const float* x, const float* norm, float eps, int dim, const float* cos, const float* sin, int half,
                 float* out) {
  if (norm) {
    const float scale = inverse_rms(x, dim, eps);
    int i = 0;
    for (; i + W <= dim; i += W) save(out + i, load(x + i) * splat(scale) * load(norm + i));
    for (; i < dim; i++) out[i] = x[i] * scale * norm[i];
    x = out;
  }
  int j = 0;
  for (; j + W <= half; j += W) {
    const VF a = load(x + j), b = load(x + half + j), c = load(cos + j), s = load(sin + j);
    save(out + j, a * c - b * s);
    save(out + half + j, b * c + a * s);
  }
  for (; j < half; j++) {
    const float a = x[j], b = x[half + j];
    out[j] = a * cos[j] - b * sin[j];
    out[half + j] = b * cos[j] + a * sin[j];
  }
  if (x == out) return;
  int i = 2 * half;
  for (; i + W <= dim; i += W) save(out + i, load(x + i));
  for (; i < dim; i++) out[i] = x[i];
}

template <bool BF16>
static bool pack16(const float* rows, int k_tiles, void* dst) {
  const int k = k_tiles * kTileK;
  uint32_t bad = 0;
  for (int t = 0; t < k_tiles; t++) {
    const float* x = rows + t * kTileK;
    for (int n = 0; n < 16; n++, x += k) {
      if (BF16) {
        uint32_t* tile = (uint32_t*)dst + (long)t * 512 + n;
        for (int i = 0; i < kTileK; i += 2) {
          uint32_t lo = bf16(x[i]), hi = bf16(x[i + 1]);
          bad |= ((lo & 0x7f80u) == 0x7f80u) | ((hi & 0x7f80u) == 0x7f80u);
          tile[i * 8] = lo | hi << 16;
        }
      } else {
        float* tile = (float*)dst + (long)t * 1024 + n;
        for (int i = 0; i < kTileK; i++) {
          bad |= !(x[i] - x[i] == 0.0f);
          tile[i * 16] = x[i];
        }
      }
    }
  }
  return bad == 0;
}

template <bool BF16>
static void unpack_row(const void* matrix, int k_tiles, long n, float scale, float* out) {
  const long tile = BF16 ? 1024 : 2048;
  const char* t = (const char*)matrix + ((n / kPanelN) * k_tiles * 2 + (n % kPanelN) / kTileN) * tile;
  for (int i = 0; i < k_tiles; i++, t += 2 * tile)
    for (int k = 0; k < kTileK; k++)
      out[i * kTileK + k] = scale * (BF16 ? widen(((const uint16_t*)t)[(k / 2) * 32 + (n % 16) * 2 + k % 2])
                                          : ((const float*)t)[k * 16 + n % 16]);
}
