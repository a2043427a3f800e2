// What a build with LDREG_WATCHDOG=1 says of a wait that does not end. For the first run on a new GPU: it is slower, because
// with a call in the kernel ptxas waits for every wgmma (C7510), so that what it shows of answers has to be shown again
// without it.
//
// Contract: a thread that has waited for kPatience (device.h) comes to `report_hang`, which ends the launch by a failed
// assertion. The driver prints its message though the context dies: what was waited for, and the job of the block.
// Without it a hang is silent.
#pragma once

#include "control.h"

#if LDREG_WATCHES

// What assert() calls, which NDEBUG has taken out of CUDA's headers.
extern "C" __device__ __attribute__((noreturn)) void __assertfail(const char* message, const char* file, unsigned line,
                                                                  const char* function, size_t character_bytes);

namespace ldreg::cuda {

static __device__ char watchdog_message[192];
static __device__ unsigned watchdog_reports;

// Writes what the driver is going to print.
struct Sentence {
  int length = 0;
  __device__ Sentence& operator<<(const char* text) {
    for (; *text && length < int(sizeof watchdog_message) - 1; ++text) watchdog_message[length++] = *text;
    watchdog_message[length] = 0;
    return *this;
  }
  __device__ Sentence& operator<<(unsigned number) {
    char digits[11] = {};
    int first = 10;
    do digits[--first] = char('0' + number % 10), number /= 10;
    while (number > 0);
    return *this << digits + first;
  }
};

static __device__ __noinline__ void report_hang(const void* waited_for, unsigned wanted) {
  if (atomicAdd(&watchdog_reports, 1u) == 0) {
    const Control& control = *reinterpret_cast<const Control*>(shared_memory());
    Sentence said;
    if (__isShared(waited_for)) {
      said << "mbarrier at byte " << unsigned(static_cast<const char*>(waited_for) - shared_memory())
           << " of shared memory, parity " << wanted;
    } else {
      const auto* counter = static_cast<const unsigned*>(waited_for);
      said << "counter " << unsigned(counter - arguments().s.state) << " of the state is " << load_relaxed(counter)
           << ", wanted " << wanted;
    }
    said << "; block " << blockIdx.x << ", thread " << unsigned(thread_id()) << ", ticket " << control.ticket << ", job "
         << unsigned(control.at.job) << ", step " << unsigned(control.at.step);
    __assertfail(watchdog_message, "ldreg watchdog", 0, "a wait that does not end", sizeof(char));
  }
  while (true) __nanosleep(1000000);  // for the end, which the first report brings
}

}  // namespace ldreg::cuda

#endif
