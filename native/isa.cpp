#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace hr {
namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512bf16() {
  unsigned a, b, c, d;
  return has_avx512() && __builtin_cpu_supports("avx512vnni") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}
bool has_amx() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!has_avx512bf16() || !__builtin_cpu_supports("avx512vbmi") || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned amx = 1u << 22 | 1u << 24 | 1u << 25;  // bf16, tiles, int8
  if ((d & amx) != amx) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low >> 17 & 3) != 3) return false;  // the system saves tile state
  // The kernel grants tile data on request, to the whole process; it refuses when a signal stack is too small for it.
  const long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512bf16() { return false; }
bool has_amx() { return false; }
#endif
bool always() { return true; }

struct Isa {
  const char* name;
  bool (*supported)();
  const Kernels* (*table)(bool bf16);
};

const Isa kIsas[] = {{"amx", has_amx, kernels_amx},
                     {"avx512bf16", has_avx512bf16, kernels_avx512bf16},
                     {"avx512", has_avx512, kernels_avx512},
                     {"avx2", has_avx2, kernels_avx2},
                     {"portable", always, kernels_portable}};

}  // namespace

const std::vector<std::string>& available_isas() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> found;
    for (const Isa& isa : kIsas)
      if (isa.supported() && isa.table(true)) found.push_back(isa.name);
    return found;
  }();
  return names;
}

const Kernels* find_kernels(const char* isa, bool bf16) {
  const std::string wanted = isa && *isa ? isa : available_isas().front();
  for (const std::string& name : available_isas())
    if (name == wanted)
      for (const Isa& known : kIsas)
        if (name == known.name) return known.table(bf16);
  return nullptr;
}

}  // namespace hr
