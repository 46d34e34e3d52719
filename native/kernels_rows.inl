// The table of an instruction set that computes row by row; the ones with matrix instructions replace some entries.
#pragma once
#include "integer.inl"
#include "strips.inl"

static void enter_nothing(int) {}
static void enter_nothing(int, int) {}
static void no_tiles() {}

template <bool BF16, bool ABF16>
static constexpr Kernels rows_kernels(const char* isa) {
  Kernels t{};
  t.isa = isa;
  t.bf16 = BF16;
  t.a_bf16 = ABF16;
  t.enter_gemm = enter_nothing;
  t.enter_attention[0] = t.enter_attention[1] = enter_nothing;
  t.leave = no_tiles;
  t.gemm = gemm_rows<BF16>;
  t.store = store_c;
  t.add = add_c;
  t.gate = gate_c<ABF16>;
  t.argmax = argmax_c;
  t.softcap = softcap_row;
  t.norm_to_a = norm_to_a<ABF16>;
  t.norm_add = norm_add;
  t.head = head;
  t.write_kv[0] = write_kv<BF16>;
  t.write_kv[1] = write_kv8<BF16>;
  t.attend[0] = attend_rows<BF16, false>;
  t.attend[1] = attend_rows<BF16, true>;
  t.merge = merge_rows;
  t.finish = finish_row<ABF16>;
  t.pack = pack16<BF16>;
  t.unpack = unpack_row<BF16>;
  t.expand = expand_strip<BF16>;
  t.enter_integer = enter_nothing;
  t.norm = norm_to_a<false>;
  t.row_of_a = row_of_a<ABF16>;
  t.quantise = quantise<kStoredBias>;
  t.expand_integer = expand_integer;
  t.gemm_integer = gemm_integer;
  return t;
}
