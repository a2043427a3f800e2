// The CUDA kernels as host functions over raw pointers: what bindings_cuda.cpp calls. Plain C++, no CUDA headers.
//
// A call has two halves. What it is (`Call`) is planned once: which kernel, how the problem is cut up, how much workspace.
// Where its tensors are (`Tensors`) changes every time, and a launch has nothing else left to find out.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace ldreg::cuda {

enum class DType : int { f32, f64, bf16, f16 };

// What is asked for: see arguments.h for the meaning of each.
struct Call {
  int device = 0;
  int64_t B = 0, N = 0, D = 0, x_stride = 0, y_stride = 0;
  DType dtype = DType::f32;
  bool same = false, exact = true, drop_smallest = false;
  int wanted = 0;
  bool tiles = true;         // candidates from tensor-core tiles, where the dtype has them
  std::string loop = "auto"; // "mma", "wgmma" or what the device is best at
  int64_t budget = 0;        // bytes of workspace besides lists; 0: the usual
  bool knn = false, gradient = false, loss = false;
  int estimator = 0, k = 0, form = 0, reduction = 0;
  std::vector<std::pair<int, int>> track;
};

// Where it is; 0 for what the call does not have.
struct Tensors {
  uintptr_t x = 0, y = 0, own_map = 0;
  int64_t own_offset = -1;  // without a map: row i of x is row own_offset + i of y; -1 for none
  double goal = 0;          // ln of the target LID
  uintptr_t distances = 0, indices = 0, lid = 0, degenerate = 0, tracked = 0, grad = 0, value = 0, coeff = 0;
};

// What a plan depends on of a GPU.
struct Gpu {
  int multiprocessors = 0, shared_bytes = 0;  // that a block may have at most
  int major = 0;                              // of its compute capability
};

// A part of a launch: `jobs` of one kind, that blocks take by ticket. For tiles, the meetings of schedule.h.
struct Segment {
  std::string job;
  int64_t jobs = 0;
  int panel = 0, step = 0, met = 0, meets = 0;
};

// A call, planned for its device. Does not change: any number of threads may launch it.
class Planned {
 public:
  // Throws std::invalid_argument where a size is too large.
  explicit Planned(const Call& call);
  // For a GPU that need not be there, to look at and not to launch.
  Planned(const Call& call, const Gpu& gpu);
  ~Planned();

  int64_t workspace() const;  // bytes, uninitialised
  int64_t state() const;      // 32-bit words, see state_of
  std::string words() const;  // the plan, for tests and the curious
  std::vector<std::pair<std::string, int64_t>> numbers() const;  // the plan (arguments.h), and the launch's threads and bytes
  std::vector<Segment> segments() const;                         // the jobs in order; `direct` has those of no failed row

  // One kernel, on `stream` of the call's device; captured, a memset before it. Neither waits nor, once a stream has its
  // state, allocates. Throws std::runtime_error naming the shape.
  void launch(const Tensors& at, uintptr_t workspace, uintptr_t stream) const;

 private:
  struct Parts;
  std::unique_ptr<const Parts> parts_;
};

// The counters of a stream, which are 0 before a launch and 0 again after it; empty if it has had none. Waits for the stream.
std::vector<unsigned> state_of(int device, uintptr_t stream);

}  // namespace ldreg::cuda
