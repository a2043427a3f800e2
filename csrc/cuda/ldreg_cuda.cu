// From a call to a launch: which kernel, its plan, its arguments. See ldreg_cuda.h.
#include "ldreg_cuda.h"

#include <algorithm>
#include <cstring>

#include "check.h"
#include "ldreg_launch.h"
#include "tensor_map.h"

#if !defined(LDREG_HOPPER_BUILT)
#define LDREG_HOPPER_BUILT 0  // whether sm_90a is among the architectures: csrc/toolchain.py says
#endif

namespace ldreg::cuda {
namespace {

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

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  LDREG_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

bool takes_hopper(const Call& call) {
  if (call.loop == "mma") return false;
  const bool can = LDREG_HOPPER_BUILT && attribute(cudaDevAttrComputeCapabilityMajor, call.device) == 9;
  if (call.loop == "wgmma" && !can)
    throw std::runtime_error("the wgmma main loop needs a Hopper GPU and a build for sm_90a");
  return can;
}

template <class Stage>
Limits limits_of(int device) {
  return {attribute(cudaDevAttrMultiProcessorCount, device), Stage::kThreads,
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) - kControlBytes, Stage::kSharedBytes, Stage::kWidth,
          Stage::kStep};
}

Limits limits_of(const Call& call, bool hopper) {
  if (call.dtype == DType::f64) return limits_of<NoTiles>(call.device);
  return hopper ? limits_of<HopperTiles>(call.device) : limits_of<PortableTiles>(call.device);
}

size_t item_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Whether four features can be read by one instruction, everywhere.
bool aligned(const Call& call) {
  const uintptr_t four = std::min<size_t>(4 * item_size(call.dtype), 16);
  const bool strides = call.x_stride % 4 == 0 && call.y_stride % 4 == 0;
  return call.D % 4 == 0 && strides && call.x % four == 0 && call.y % four == 0;
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Problem problem_of(const Call& call) {
  Problem p{};
  p.x = pointer<void>(call.x), p.x_stride = call.x_stride;
  p.y = pointer<void>(call.y), p.y_stride = call.y_stride;
  p.B = int(call.B), p.N = int(call.N), p.D = int(call.D);
  p.own = call.own_map ? OwnKind::map : call.own_offset >= 0 ? OwnKind::offset : OwnKind::none;
  p.own_map = pointer<const int64_t>(call.own_map), p.own_offset = call.own_offset;
  p.wanted = call.wanted + call.drop_smallest, p.drop = call.drop_smallest;
  p.exact = call.exact, p.same = call.same, p.aligned = aligned(call);
  return p;
}

Request request_of(const Call& call) {
  Request r{};
  r.knn = call.knn, r.gradient = call.gradient, r.loss = call.loss;
  r.estimator = call.estimator, r.k = call.k, r.form = call.form, r.reduction = call.reduction, r.goal = call.goal;
  r.tracks = int(call.track.size());
  for (int t = 0; t < r.tracks; ++t) r.track_estimator[t] = call.track[t].first, r.track_k[t] = call.track[t].second;
  return r;
}

void check_sizes(const Call& call) {
  const auto most = [](const char* name, int64_t value, int64_t limit) {
    if (value > limit)
      throw std::invalid_argument(std::string(name) + " must be at most " + std::to_string(limit) +
                                  " on backend 'cuda', got " + std::to_string(value));
  };
  most("D", call.D, kLargestColumns);
  most("the number of rows of x", call.B, kLargestRows);
  most("the number of rows of y", call.N, kLargestRows);
  most("k (track included)", call.wanted, kLargestK);
  most("the number of tracked LIDs", int64_t(call.track.size()), kMostTracks);
}

std::string shape_of(const Call& call) {
  return "x [" + std::to_string(call.B) + ", " + std::to_string(call.D) + "], y [" + std::to_string(call.N) + ", " +
         std::to_string(call.D) + "], k = " + std::to_string(call.wanted);
}

// The packed matrices, to the tensor copies that read them.
void describe_operands(Arguments& a) {
  const int64_t blocks = ceil_div(a.p.N, kBlock) * int64_t(kBlock);
  const CUtensorMap y = tensor_map(a.s.y, a.plan.once ? blocks : 2 * int64_t(a.plan.chunk), a.plan.columns);
  const CUtensorMap x = a.plan.symmetric ? y : tensor_map(a.s.x, a.plan.panel, a.plan.columns);
  static_assert(sizeof(CUtensorMap) <= sizeof(TensorMap));
  std::memcpy(&a.maps[0], &x, sizeof x);
  std::memcpy(&a.maps[1], &y, sizeof y);
}

struct Planned {
  Arguments a;
  LaunchAt at;
  int64_t workspace;
};

template <class Real>
Planned plan_for(const Call& call, uintptr_t workspace, uintptr_t state) {
  check_sizes(call);
  const bool hopper = call.dtype != DType::f64 && takes_hopper(call);
  const Limits limits = limits_of(call, hopper);
  Planned planned{};
  Arguments& a = planned.a;
  a.p = problem_of(call), a.r = request_of(call);
  a.o = {pointer<void>(call.distances), pointer<int64_t>(call.indices), pointer<void>(call.lid),
         pointer<uint8_t>(call.degenerate), pointer<void>(call.tracked), pointer<void>(call.grad),
         pointer<void>(call.value), pointer<void>(call.coeff)};
  // Dropping the smallest would make every guess of who is a neighbour off by one.
  const bool sums = !a.r.knn && a.r.gradient && a.p.drop == 0 && a.p.D <= kWidest<16> &&
                    near_power(Estimator(a.r.estimator)) > 0;
  a.plan = make_plan<Real>(a.p, call.tiles, sums, limits, call.budget > 0 ? call.budget : kBudget);
  planned.workspace = lay_out(a.p, a.plan, pointer<char>(workspace), pointer<unsigned>(state), a.s);
  planned.at = {limits.blocks, kControlBytes + stage_bytes<Real>(a.p, a.plan, limits), kControlBytes + limits.shared_bytes,
                hopper, nullptr};
  return planned;
}

Planned plan_for(const Call& call, uintptr_t workspace, uintptr_t state) {
  return call.dtype == DType::f64 ? plan_for<double>(call, workspace, state) : plan_for<float>(call, workspace, state);
}

std::string words(const Planned& planned) {
  const Plan& p = planned.a.plan;
  if (!p.tiles) return "direct, " + std::to_string(p.together) + " queries together";
  return std::string(p.symmetric ? "symmetric " : "one-sided ") + (planned.at.hopper ? "wgmma" : "mma") + " tiles, " + (p.once ? "packed at once" : "packed in steps") +
         ", " + std::to_string(p.panels) + " panels, " + std::to_string(p.steps) + " steps, lists of " + std::to_string(p.cap);
}

}  // namespace

Needs needs(const Call& call) {
  const Planned planned = plan_for(call, 0, 0);
  return {planned.workspace, state_words(planned.a.plan, planned.a.p.B), words(planned)};
}

void launch(const Call& call, uintptr_t workspace, uintptr_t state, uintptr_t stream) {
  try {
    const DeviceGuard guard(call.device);
    Planned planned = plan_for(call, workspace, state);
    planned.at.stream = pointer<void>(stream);
    if (planned.a.plan.tiles && planned.at.hopper) describe_operands(planned.a);
    switch (call.dtype) {
      case DType::f32: return launch_kernel<float>(planned.a, planned.at);
      case DType::f64: return launch_kernel<double>(planned.a, planned.at);
      case DType::bf16: return launch_kernel<__nv_bfloat16>(planned.a, planned.at);
      case DType::f16: return launch_kernel<__half>(planned.a, planned.at);
    }
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("launching the kernel for " + shape_of(call) + ": " + error.what());
  }
}

}  // namespace ldreg::cuda
