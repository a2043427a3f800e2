// What mma_emulated.h and hopper_emulated.h stand on: shared addresses, chance, instructions of a whole warp.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <string>

namespace simt::emulated {

// What the destination of a copy holds while it is under way: NaN, in every floating-point format.
constexpr char kInFlight = '\xFF';

// Ends the launch with an error that names the thread.
[[noreturn]] inline void fail(const std::string& what) { detail::trap(what.c_str()); }

inline void require(bool condition, const char* what) {
  if (!condition) fail(what);
}

inline bool one_in(unsigned n) { return detail::random() % n == 0; }

inline int warp_of_thread() { return static_cast<int>(threadIdx.x) / 32; }
inline int lane_of_thread() { return static_cast<int>(threadIdx.x) % 32; }

// The bytes at a shared address, which have to lie in what the block was launched with.
inline char* shared_at(uint64_t address, size_t bytes, size_t alignment, const char* who) {
  const auto at = [&] { return std::string(who) + " at shared address " + std::to_string(address); };
  if (address % alignment) fail(at() + ", not a multiple of " + std::to_string(alignment));
  char* data = static_cast<char*>(__cvta_shared_to_generic(address));
  const char* begin = shared_memory();
  if (data < begin || data + bytes > begin + shared_bytes())
    fail(at() + ", outside of the block's " + std::to_string(shared_bytes()) + " bytes");
  return data;
}

// A destination starts to be in flight; later, that nobody has written to it since.
inline void cover(char* to, size_t bytes) { std::memset(to, kInFlight, bytes); }
inline void require_covered(const char* to, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i)
    if (to[i] != kInFlight) fail("the destination of a copy was written while the copy was in flight");
}

// The lanes of a warp, each of which has left its operands somewhere, meet at an instruction. True in one of them: that
// one executes it for all before any of them goes on. Results may lie around until all meet again.
class Meeting {
 public:
  bool leads(const char* instruction) {
    if (arrived_++ == 0) instruction_ = instruction;
    if (std::strcmp(instruction, instruction_))
      fail(std::string(instruction) + " while other lanes of the warp execute " + instruction_);
    __syncwarp();
    if (arrived_ < 32) return false;
    arrived_ = 0;
    return true;
  }

 private:
  int arrived_ = 0;
  const char* instruction_ = "";
};

}  // namespace simt::emulated
