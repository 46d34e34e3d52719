// The table of compute kernels that each instruction set provides, and the memory layouts that they agree on.
//
// Tile: 32 rows (k) x 16 columns (n) of a weight matrix, the unit of every packed matrix.
//   bf16 (1 KB): [16 pairs of k][16 columns][2]   the VNNI order that AMX, VDPBF16PS and shift+FMA all read
//   fp32 (2 KB): [32 k][16 columns]
// Panel: 32 columns of a matrix over all k: [k/32][2 tiles]; one linear stream. A matrix is [n/32] panels. k and n are
//   padded with zeros to multiples of 32.
// A operand: activations as [rows/16][k/32][16 rows][32 k] in bf16 where the kernel multiplies bf16 (`a_bf16`),
//   else [rows][k] in fp32. Either way 16 rows take 16 * k elements, so a 16-row group starts at the same place.
// KV block (16 tokens, one head, head_dim padded to `dp`, a multiple of 32):
//   bf16: K [dp/2][16 tokens][2], V [dp/16][8 token pairs][16 dims][2]
//   fp32: K [dp][16 tokens],      V [dp/16][16 tokens][16 dims]
//   8 bits: for K and for V, a byte for each element, then the 16 tokens' scales, fp32. Bytes are sign and 7 bits of
//     magnitude in the order of the layouts above; where AMX multiplies them as they are (attention_int8_amx.inl),
//     integers: K [dp/4][16 tokens][4], V [dp/16][4 fours of tokens][16 dims][4].
//
// Batch invariance: every output element is accumulated over k in one order that depends on nothing else, and each
// row of attention walks its context in chunks cut at absolute multiples of kChunk tokens, where masked tokens are exact
// no-ops. So no kernel may let a row's value depend on how many rows it is computed with.
//
// Files that implement this table are compiled with their own -m flags: they include nothing that could emit an inline
// symbol which the linker might then use elsewhere (no standard library), and everything in them is static.
#pragma once
#include <stdint.h>

namespace hr {

constexpr int kTileK = 32, kTileN = 16, kPanelN = 32;
constexpr int kRowBlock = 32;   // rows of one gemm call
constexpr int kProductRows = 2048;  // rows of 32 columns that wait to be finished, at most
constexpr int kKvBlock = 16;    // tokens of a KV block
constexpr int kChunk = 64;      // tokens of one softmax chunk
constexpr int kSplit = 512;     // tokens of one attention split; a multiple of kChunk
constexpr int kQueryRows = 64;  // query rows (heads of a group x tokens) of one attention call, at most
constexpr int kMaxHeadDim = 512;
constexpr float kMasked = -1e30f;
// How far ahead of what is read weights are fetched, in bytes. The hardware's own prefetcher does not keep up where there
// is something to compute (docs/decisions/0019).
constexpr long kFetchAhead = 4096;

// What one row of queries has seen of its context. Weights are powers of 2 of (score - base); the base is raised only
// when weights would grow too large, so it is at most far below the largest score, never far above.
struct AttentionState {
  alignas(64) float base[kQueryRows];
  alignas(64) float sum[kQueryRows * 16];           // of weights, in lanes that are added up at the end
  alignas(64) float acc[kQueryRows * kMaxHeadDim];  // [rows][dp]: weighted values
};

struct AttentionCall {
  const float* q;         // [rows][dp], after RoPE, padding zero
  int rows, dp;           // rows <= kQueryRows
  const int32_t* low;     // per row: first position attended to
  const int32_t* high;    // per row: one past the last
  const int32_t* blocks;  // the sequence's block table
  const char* kv;         // block 0's K of this layer and head
  long block_stride;      // bytes from a block to the next
  long v_offset;          // bytes from K to V
  int begin, end;         // positions of this call; begin is a multiple of kChunk
  float scale, softcap;   // softcap 0: none
  char* tiles;            // room for K and V of a chunk
  // What the thread will attend to after this call: `next_tokens` from a block on, fetched meanwhile.
  const int32_t* next_blocks;
  const char* next_kv;
  int next_tokens;
};

// Running arg-max of one logits row, per column of a tile.
struct alignas(64) ArgMax {
  float value[kTileN];
  int32_t index[kTileN];
  int32_t bad[kTileN];  // non-zero where a NaN or +inf was seen
  const uint32_t* mask;  // the columns that count, a word for each panel; null: all
};

// Quantised weights of 16 columns, stored in a format of strips.h. While one is read, what lies `ahead` bytes further is
// fetched.
struct Strip {
  char* data;
  int format;
  long ahead;
};

// What becomes of a block [rows][32] of a product: one of store, add, gate and argmax below. Row by row, so that a kernel
// can do it beside other work.
struct Finish {
  void (*rows)(const Finish* finish, int first, int end) = nullptr;
  const float* c = nullptr;
  int count = 0;                                      // of rows
  const float* bias = nullptr;                        // store, add: of the block's columns, or null
  float* out = nullptr;                               // store, add: where row 0 goes
  long ld = 0;                                        // its row stride
  void* a = nullptr;                                  // gate: the A operand that is written
  int k_tiles = 0, row = 0;                           // gate: its tiles, and c's first row in it
  int column = 0;                                     // gate: c's first in A; argmax: of the whole
  bool gelu = false;                                  // gate
  ArgMax* best = nullptr;                             // argmax: of row 0
  int valid = 0;                                      // argmax: columns of the whole
  float softcap = 0.0f;                               // argmax; 0: none
};

// c[rows][32] = A[rows][k] * panel, over all k or a part of it that goes on where another left off: the sums are the same.
struct GemmCall {
  const void* a;         // the first 16-row group, at the first k tile
  long group;            // bytes from one 16-row group to the next
  int rows, k_tiles;     // rows <= kRowBlock
  const void* panel;     // at the first k tile
  float* c;
  bool more;             // c += instead of c =
  const Finish* before;  // a kernel that `overlaps` finishes this block, before it writes to c; null: none
  const void* ahead;     // and fetches `lines` cache lines for each k tile, from `ahead` on; others fetch by themselves
  int lines;
};

struct Kernels {
  const char* isa;
  bool bf16;      // weights and KV are bf16 (else fp32)
  bool a_bf16;    // the A operand is bf16 tiles (else fp32 rows)
  bool overlaps;  // see GemmCall

  // Called by each thread before a run of gemm / attend calls and at the end of a step (AMX tile configuration).
  void (*enter_gemm)(int rows);
  void (*enter_attention[2])(int rows);  // of each call; those of more than 16 count as 16. As attend: [1] for 8 bits
  void (*leave)();

  void (*gemm)(const GemmCall* call);

  // What is done with c.
  void (*store)(const Finish* finish, int first, int end);  // out = c + bias
  void (*add)(const Finish* finish, int first, int end);    // out += c + bias
  void (*gate)(const Finish* finish, int first, int end);   // A = act(c's left half) * c's right half
  void (*argmax)(const Finish* finish, int first, int end);
  void (*softcap)(float* x, long n, float cap);

  // RMS norms of one row of n values, stored in rows padded to a multiple of 32; weights' padding is zero.
  void (*norm_to_a)(const float* x, const float* weight, int n, float eps, void* a, int k_tiles, int row);
  void (*norm_add)(const float* x, const float* weight, int n, float eps, float* out);  // out += norm(x)

  // One head: optional norm, then RoPE of its first 2 * half values, pairs (j, j + half).
  void (*head)(const float* x, const float* norm, float eps, int dim, const float* cos, const float* sin, int half,
               float* out);
  // KV in the model's precision: [0], in 8 bits: [1].
  void (*write_kv[2])(const float* k, const float* v, int dim, int slot, void* k_block, void* v_block);
  void (*attend[2])(const AttentionCall* call, AttentionState* state);
  void (*merge)(AttentionState* total, const AttentionState* part, int rows, int dp);
  // A[row][column ...] = acc / sum, for query row r of the state
  void (*finish)(const AttentionState* state, int r, int dp, int dim, void* a, int k_tiles, int row, int column);

  // Packs 16 matrix rows ([16][k] fp32, contiguous) into the tiles at dst, 2 tiles apart. False if not all are finite.
  bool (*pack)(const float* rows, int k_tiles, void* dst);
  // Row `n` of a packed matrix, times scale: an embedding look-up in a tied lm_head.
  void (*unpack)(const void* matrix, int k_tiles, long n, float scale, float* out);
  // Tiles [first, end) of a strip at dst, 2 tiles apart.
  void (*expand)(const Strip* strip, int k_tiles, int first, int end, void* dst);
  // gemm for two strips, of up to `strip_rows` rows; more rows, and kernels without it, expand a panel first.
  int strip_rows;
  void (*gemm_strips)(const void* a, int rows, const Strip* strips, int k_tiles, float* c);

  // Products of integers; layouts are those of integer.h, `tiles` count 64 k.
  void (*enter_integer)(int rows, int planes);
  void (*norm)(const float* x, const float* weight, int n, float eps, void* out, int k_tiles, int row);  // fp32 rows
  void (*row_of_a)(const void* a, int k_tiles, int row, float* out);  // a row of the float operand
  void (*quantise)(const float* x, int tiles, int planes, void* a, int row);
  void (*expand_integer)(const Strip* strip, int tiles, void* out);  // as a strip of bytes
  // gemm for two strips of bytes.
  void (*gemm_integer)(const void* a, int rows, int planes, const Strip* strips, int tiles, float* c, const void* ahead,
                       int lines);
  // The same for strips that become bytes along the way; null where that gains nothing.
  void (*gemm_nibbles)(const void* a, int rows, int planes, const Strip* strips, int tiles, float* c);
};

// The table of one instruction set, or null where the compiler could not build it.
const Kernels* kernels_portable(bool bf16);
const Kernels* kernels_avx2(bool bf16);
const Kernels* kernels_avx512(bool bf16);
const Kernels* kernels_avx512bf16(bool bf16);
const Kernels* kernels_amx(bool bf16);

}  // namespace hr
