// How keys and values of a token go into a KV block, and how a block of 8-bit codes becomes tiles again (layouts:
// kernels.h). Included before attention.inl.
#pragma once

// A value that is not finite is stored as 0: masked slots are multiplied by an exact 0, and 0 * NaN would carry one
// request's fault into the next user of the block. The key keeps it, so the faulty row itself still ends in NaN.
static inline float finite(float x) { return x - x == 0.0f ? x : 0.0f; }
static inline VF finite(VF x) { return pick(x - x == VF{}, x, VF{}); }

template <bool BF16>
static void write_kv(const float* k, const float* v, int dim, int slot, void* k_block, void* v_block) {
  if (BF16) {
    alignas(64) uint16_t key[kMaxHeadDim], value[kMaxHeadDim];
    int i = 0;
    for (; i + W <= dim; i += W) {
      save_bf16(key + i, load(k + i));
      save_bf16(value + i, finite(load(v + i)));
    }
    for (; i < dim; i++) {
      key[i] = bf16(k[i]);
      value[i] = bf16(finite(v[i]));
    }
    uint16_t *kb = (uint16_t*)k_block + 2 * slot, *vb = (uint16_t*)v_block + (slot / 2) * 32 + slot % 2;
    for (int j = 0; j < dim; j += 2) __builtin_memcpy(kb + j * 16, key + j, 4);
    int done = 0;
#if defined(__AVX512BW__)
    // Of a pair of tokens only this one's halves are written: the other may be another thread's.
    const __m128i shift = _mm_cvtsi32_si128(slot % 2 * 16);
    for (; done + 16 <= dim; done += 16) {
      const __m512i wide = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)(value + done)));
      _mm512_mask_storeu_epi16(vb - slot % 2 + (done / 16) * 256, 0x55555555u << slot % 2, _mm512_sll_epi32(wide, shift));
    }
#endif
    for (int j = done; j < dim; j++) vb[(j / 16) * 256 + (j % 16) * 2] = value[j];
  } else {
    float *kb = (float*)k_block + slot, *vb = (float*)v_block + slot * 16;
    for (int j = 0; j < dim; j++) kb[j * 16] = k[j];
    for (int j = 0; j < dim; j++) vb[(j / 16) * 256 + j % 16] = finite(v[j]);
  }
}

typedef uint8_t VB __attribute__((vector_size(W), aligned(1), may_alias));

static inline VU code(VF x, VF inverse) {
  const VU magnitude = (VU)((VF)((VU)(finite(x) * inverse) & 0x7fffffffu) + splat(12582912.0f));  // rounds to even
  return ((VU)x >> 24 & 0x80u) | (magnitude & 0x7fu);
}

// 8 bits: codes / 127 of the largest magnitude of a token's head. Returns the scale, NaN if a value is not finite (then
// codes are those of the finite ones). Writes whole vectors of codes.
static inline float codes_of(const float* x, int dim, uint8_t* codes) {
  alignas(64) float last[W] = {};
  const int whole = dim / W * W;
  for (int i = whole; i < dim; i++) last[i - whole] = x[i];
  const VF end = load(last);
  VF most = (VF)((VU)finite(end) & 0x7fffffffu), fault = end - end;
  for (int i = 0; i < whole; i += W) {
    most = vmax((VF)((VU)finite(load(x + i)) & 0x7fffffffu), most);
    fault += load(x + i) - load(x + i);
  }
  const float top = hmax(most), bound = top > 1e-30f ? top : 0.0f;
  const VF inverse = splat(bound > 0 ? 127.0f / bound : 0.0f);
  for (int i = 0; i < whole; i += W) *(VB*)(codes + i) = __builtin_convertvector(code(load(x + i), inverse), VB);
  *(VB*)(codes + whole) = __builtin_convertvector(code(end, inverse), VB);
  return bound / 127.0f + hsum(fault);
}

template <bool BF16>
static void write_kv8(const float* k, const float* v, int dim, int slot, void* k_block, void* v_block) {
  alignas(64) uint8_t key[kMaxHeadDim + W], value[kMaxHeadDim + W];
  const long scales = (long)(dim + kTileK - 1) / kTileK * kTileK * kKvBlock;
  uint8_t *kb = (uint8_t*)k_block, *vb = (uint8_t*)v_block;
  const float v_scale = codes_of(v, dim, value);
  ((float*)(kb + scales))[slot] = codes_of(k, dim, key);
  ((float*)(vb + scales))[slot] = finite(v_scale);
  if (BF16) {
    for (int j = 0; j < dim; j += 2) __builtin_memcpy(kb + j * 16 + slot * 2, key + j, 2);
    for (int j = 0; j < dim; j++) vb[j / 16 * 256 + slot / 2 * 32 + j % 16 * 2 + slot % 2] = value[j];
  } else {
    for (int j = 0; j < dim; j++) kb[j * 16 + slot] = key[j];
    for (int j = 0; j < dim; j++) vb[j / 16 * 256 + slot * 16 + j % 16] = value[j];
  }
}

// n codes, a multiple of 8, as numbers from -127 to 127 in the model's precision (exact in both).
template <bool BF16>
static inline void expand_codes(const char* from, long n, char* to) {
  typedef uint8_t Bytes __attribute__((vector_size(8), aligned(1), may_alias));
  typedef uint32_t Words __attribute__((vector_size(32)));
  typedef int32_t Ints __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));
  typedef uint16_t Halves __attribute__((vector_size(16), aligned(2), may_alias));
  typedef uint32_t FloatBits __attribute__((vector_size(32), aligned(4), may_alias));
  for (long i = 0; i < n; i += 8) {
    const Words code = __builtin_convertvector(*(const Bytes*)(from + i), Words);
    const Words bits = (Words)__builtin_convertvector((Ints)(code & 0x7fu), Floats) | (code & 0x80u) << 24;
    if (BF16)
      *(Halves*)(to + 2 * i) = __builtin_convertvector(bits >> 16, Halves);
    else
      *(FloatBits*)(to + 4 * i) = bits;
  }
}
