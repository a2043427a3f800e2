// The processor's floating-point mode while a kernel runs: round to nearest, keep subnormal numbers, whatever the caller
// set (torch.set_flush_denormal, -ffast-math elsewhere in the process). Error bounds count on it, and threads that were
// started at different times would differ otherwise.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace ldreg {

// The default mode for as long as this lives, on the thread that made it; then the thread's own again.
class DefaultFloats {
 public:
  DefaultFloats() { exchange_for_default(); }
  ~DefaultFloats() { restore(); }
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
#if defined(__x86_64__)
  void exchange_for_default() { before_ = _mm_getcsr(), _mm_setcsr(0x1f80); }
  void restore() { _mm_setcsr(before_); }
  unsigned before_;
#elif defined(__aarch64__)
  void exchange_for_default() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_)::"memory");
    set(0);
  }
  void restore() { set(before_); }
  static void set(uint64_t mode) { __asm__ volatile("msr fpcr, %0" ::"r"(mode) : "memory"); }
  uint64_t before_;
#else
  void exchange_for_default() { std::fegetenv(&before_), std::fesetenv(FE_DFL_ENV); }
  void restore() { std::fesetenv(&before_); }
  std::fenv_t before_;
#endif
};

}  // namespace ldreg
