// See choice.h. Compiled for any machine, as everything that runs before the choice must be.
#include "choice.h"

#if LDREG_X86
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace ldreg {
namespace {

const Kernels* const kSets[] = {  // fastest first
#if LDREG_X86
    &kernels_avx512bf16, &kernels_avx512, &kernels_avx2,
#elif defined(__aarch64__)
    &kernels_neonbf16, &kernels_neon,
#endif
    &kernels_portable};

#if LDREG_X86
// Asked of the processor, because clang 14 does not know the name in __builtin_cpu_supports; once, because a virtual
// machine takes microseconds to answer.
bool has_f16c() {
  static const bool found = [] {
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  }();
  return found;
}
#elif defined(__aarch64__)
bool arm_has_bf16() {
#if defined(__linux__)
  constexpr unsigned long bf16 = 1ul << 14;  // HWCAP2_BF16, which older headers do not have
  return getauxval(AT_HWCAP2) & bf16;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}
#endif

bool runs_here(const std::string& isa) {
#if LDREG_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == "avx512bf16") return avx512 && __builtin_cpu_supports("avx512bf16");
  if (isa == "avx512") return avx512;
  if (isa == "avx2") return avx2;
#elif defined(__aarch64__)
  if (isa == "neon") return true;
  if (isa == "neonbf16") return arm_has_bf16();
#endif
  return isa == "portable";
}

}  // namespace

const Kernels* choose_kernels(const std::string& name) {
  for (const Kernels* set : kSets)
    if ((name.empty() || name == set->isa) && runs_here(set->isa)) return set;
  return nullptr;
}

std::string executable_sets() {
  std::string names;
  for (const Kernels* set : kSets)
    if (runs_here(set->isa)) names += (names.empty() ? "" : ", ") + std::string(set->isa);
  return names;
}

}  // namespace ldreg
