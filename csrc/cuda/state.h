// The counters of a launch, which are 0 before it and 0 again after it, so that nothing has to clear them.
//
// Contract: every stream of every device has words of its own, because launches on one stream follow each other, and
// launches on two do not. They are allocated here, at the first launch on a stream, and never freed: torch's allocator may
// be handing out the memory of a graph's private pool just then (torch.compile(mode="reduce-overhead") warms up inside it),
// where nothing may stay. A captured launch is replayed beside anything else, so it gets words at the end of its own
// workspace, and a memset before it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "check.h"

namespace ldreg::cuda {

// The call's device is the current one, whichever was before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    LDREG_CUDA_CHECK(cudaGetDevice(&before_));
    if (device != before_) LDREG_CUDA_CHECK(cudaSetDevice(device));
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  LDREG_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

inline unsigned* captured_state(uintptr_t memory, int64_t words, cudaStream_t stream) {
  auto* state = reinterpret_cast<unsigned*>(memory);
  LDREG_CUDA_CHECK(cudaMemsetAsync(state, 0, words * sizeof(unsigned), stream));
  return state;
}

// What is there for each stream.
class KeptStates {
 public:
  struct State {
    unsigned* data = nullptr;
    int64_t words = 0;
  };

  // On the current device.
  unsigned* at_least(int device, cudaStream_t stream, int64_t words) {
    const std::lock_guard<std::mutex> lock(mutex_);
    State& state = states_[{device, stream}];
    if (state.words < words) state = allocated(std::max(words, 2 * std::max(state.words, kLeast)), stream);
    return state.data;
  }

  State of(int device, cudaStream_t stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = states_.find({device, stream});
    return found == states_.end() ? State{} : found->second;
  }

 private:
  static constexpr int64_t kLeast = 2048;  // 8 KB do for a hundred thousand queries

  // What was there before is left to launches that are still under way.
  static State allocated(int64_t words, cudaStream_t stream) {
    // Another thread may be capturing, which forbids an allocation unless told that it is none of the graph's.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    LDREG_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
    State state{nullptr, words};
    const cudaError_t status = cudaMalloc(&state.data, words * sizeof(unsigned));
    LDREG_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
    check(status, "cudaMalloc");
    LDREG_CUDA_CHECK(cudaMemsetAsync(state.data, 0, words * sizeof(unsigned), stream));
    return state;
  }

  std::mutex mutex_;
  std::map<std::pair<int, cudaStream_t>, State> states_;
};

// Never destroyed: at exit, a stream may still be at work.
inline KeptStates& kept_states() {
  static auto* states = new KeptStates;
  return *states;
}

inline unsigned* kept_state(int device, cudaStream_t stream, int64_t words) {
  return kept_states().at_least(device, stream, words);
}

}  // namespace ldreg::cuda
