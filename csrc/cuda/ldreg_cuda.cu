// From a call to a launch: which kernel, its plan, its arguments. See ldreg_cuda.h.
#include "ldreg_cuda.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "check.h"
#include "ldreg_launch.h"
#include "state.h"
#include "tensor_map.h"

#if !defined(LDREG_HOPPER_BUILT)
#define LDREG_HOPPER_BUILT 0  // whether sm_90a is among the architectures: csrc/toolchain.py says
#endif

namespace ldreg::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  LDREG_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

Gpu gpu_of(int device) {
  return {attribute(cudaDevAttrMultiProcessorCount, device), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          attribute(cudaDevAttrComputeCapabilityMajor, device)};
}

bool takes_hopper(const Call& call, const Gpu& gpu) {
  if (call.loop == "mma") return false;
  const bool can = LDREG_HOPPER_BUILT && gpu.major == 9;
  if (call.loop == "wgmma" && !can)
    throw std::runtime_error("the wgmma main loop needs a Hopper GPU and a build for sm_90a");
  return can;
}

template <class Stage>
Limits limits_of(const Gpu& gpu) {
  return {gpu.multiprocessors, Stage::kThreads, gpu.shared_bytes - kControlBytes, Stage::kSharedBytes, Stage::kWidth,
          Stage::kStep, Stage::kKeptColumns, Stage::kDenseBytes};
}

Limits limits_of(const Gpu& gpu, bool tiles, bool hopper) {
  if (!tiles) return limits_of<NoTiles>(gpu);
  return hopper ? limits_of<HopperTiles>(gpu) : limits_of<PortableTiles>(gpu);
}

size_t item_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Whether four features can be read by one instruction, everywhere.
bool aligned(const Call& call, const Tensors& at) {
  const uintptr_t four = std::min<size_t>(4 * item_size(call.dtype), 16);
  const bool strides = call.x_stride % 4 == 0 && call.y_stride % 4 == 0;
  return call.D % 4 == 0 && strides && at.x % four == 0 && at.y % four == 0;
}

// Whether the copy engine can bring rows of y.
bool bulk(const Call& call, const Tensors& at) {
  const size_t item = item_size(call.dtype);
  return call.D * item % 16 == 0 && call.y_stride * item % 16 == 0 && at.y % 16 == 0;
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// All but where things are.
Problem problem_of(const Call& call) {
  Problem p{};
  p.x_stride = call.x_stride, p.y_stride = call.y_stride;
  p.B = int(call.B), p.N = int(call.N), p.D = int(call.D);
  p.wanted = call.wanted + call.drop_smallest, p.drop = call.drop_smallest;
  p.exact = call.exact, p.same = call.same;
  p.item = int(item_size(call.dtype));
  return p;
}

Request request_of(const Call& call) {
  Request r{};
  r.knn = call.knn, r.gradient = call.gradient, r.loss = call.loss;
  r.estimator = call.estimator, r.k = call.k, r.form = call.form, r.reduction = call.reduction;
  r.tracks = int(call.track.size());
  for (int t = 0; t < r.tracks; ++t) r.track_estimator[t] = call.track[t].first, r.track_k[t] = call.track[t].second;
  return r;
}

void put_tensors(const Call& call, const Tensors& at, Arguments& a) {
  a.p.x = pointer<void>(at.x), a.p.y = pointer<void>(at.y);
  a.p.own = at.own_map ? OwnKind::map : at.own_offset >= 0 ? OwnKind::offset : OwnKind::none;
  a.p.own_map = pointer<const int64_t>(at.own_map), a.p.own_offset = at.own_offset;
  a.p.aligned = aligned(call, at);
  a.p.bulk = bulk(call, at);
  a.r.goal = at.goal;
  a.o = {pointer<void>(at.distances), pointer<int64_t>(at.indices), pointer<void>(at.lid),
         pointer<uint8_t>(at.degenerate), pointer<void>(at.tracked), pointer<void>(at.grad),
         pointer<void>(at.value), pointer<void>(at.coeff)};
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
  const CUtensorMap y = tensor_map(a.s.y, a.plan.once ? blocks : buffers(a.plan) * int64_t(a.plan.chunk), a.plan.columns);
  const CUtensorMap x = a.plan.symmetric ? y : tensor_map(a.s.x, a.plan.panel, a.plan.columns);
  static_assert(sizeof(CUtensorMap) <= sizeof(TensorMap));
  std::memcpy(&a.maps[0], &x, sizeof x);
  std::memcpy(&a.maps[1], &y, sizeof y);
}

}  // namespace

// ---------------------------------------------------------------------------------- planning

struct Planned::Parts {
  Call call;
  Arguments a{};  // without what a launch puts in
  LaunchAt at{};
  int threads = 0;                     // of a block
  int64_t space = 0, state_words = 0;  // bytes of workspace, without the state of a captured launch

  template <class Real>
  void plan(const Gpu& gpu) {
    a.p = problem_of(call), a.r = request_of(call);
    const Pairs pairs = call.pairs == "direct" ? Pairs::direct : call.pairs == "dense" ? Pairs::dense : Pairs::counted;
    const int gradient_rows = a.r.gradient ? a.r.k : 0;
    bool tiles = call.tiles && call.dtype != DType::f64 && pairs != Pairs::dense;
    const bool hopper = tiles && takes_hopper(call, gpu);
    Limits limits = limits_of(gpu, tiles, hopper);
    const Cycles cycles{a.p, int(item_size(call.dtype)), limits.blocks};
    // Dropping the smallest would make every guess of who is a neighbour off by one.
    const bool sums = !a.r.knn && a.r.gradient && a.p.drop == 0 && a.p.D <= columns_at_once(a.p.D) &&
                      near_power(Estimator(a.r.estimator)) > 0;
    const int64_t budget = call.budget > 0 ? call.budget : kBudget;
    if (tiles) {
      a.plan = make_plan<Real>(a.p, true, sums, limits, budget, pairs, gradient_rows);
      tiles = a.plan.tiles;  // or there was no room for both wide rows and long lists
      if (tiles && pairs == Pairs::counted && call.loop == "auto") tiles = cycles.lists(a.plan) <= cycles.dense(gradient_rows);
    }
    if (!tiles) {
      limits = limits_of(gpu, false, false);
      a.plan = make_plan<Real>(a.p, false, sums, limits, budget, pairs, gradient_rows);
    }
    threads = limits.threads;
    space = lay_out(a.p, a.plan, nullptr, nullptr, a.s);
    state_words = ldreg::cuda::state_words(a.plan, a.p.B);
    at = {limits.blocks, kControlBytes + stage_bytes<Real>(a.p, a.plan, limits), kControlBytes + limits.shared_bytes,
          a.plan.tiles ? hopper ? Way::hopper : Way::portable : Way::pairs, nullptr};
  }
};

Planned::Planned(const Call& call) : Planned(call, gpu_of(call.device)) {}

Planned::Planned(const Call& call, const Gpu& gpu) {
  check_sizes(call);
  auto parts = std::make_unique<Parts>();
  parts->call = call;
  if (call.dtype == DType::f64) parts->plan<double>(gpu);
  else parts->plan<float>(gpu);
  parts_ = std::move(parts);
}

Planned::~Planned() = default;

int64_t Planned::workspace() const { return parts_->space + parts_->state_words * int64_t(sizeof(unsigned)); }

int64_t Planned::state() const { return parts_->state_words; }

std::string Planned::words() const {
  const Plan& p = parts_->a.plan;
  const std::string narrow = p.narrow > 0 && p.width > 1 ? std::to_string(p.narrow) + " of them narrow, " : "";
  if (!p.tiles && p.dense_rows == 0) return "direct, " + std::to_string(p.together) + " queries together";
  if (!p.tiles)
    return "dense, " + std::to_string(p.dense_rows) + " queries, " + std::to_string(p.dense_references) + " references a round";
  const std::string loop = parts_->at.way == Way::hopper ? "wgmma" : "mma";
  return (p.symmetric ? "symmetric " : "one-sided ") + loop + " tiles, " +
         (p.once     ? "packed at once"
          : p.macros ? "packed in " + std::to_string(p.macros) + " macro-blocks" + (p.kept ? ", queries kept" : "")
                     : "packed in steps") +
         ", " + std::to_string(p.panels) + " panels, " + std::to_string(p.steps) + " steps, " + narrow + "lists of " +
         std::to_string(p.cap);
}

std::vector<std::pair<std::string, int64_t>> Planned::numbers() const {
  const Plan& p = parts_->a.plan;
  return {{"tiles", p.tiles},         {"sums", p.sums},           {"symmetric", p.symmetric},
          {"once", p.once},           {"width", p.width},         {"columns", p.columns},
          {"cap", p.cap},             {"room", p.room},           {"panel", p.panel},
          {"panels", p.panels},       {"chunk", p.chunk},         {"meetings", p.meetings},
          {"growth", p.growth},       {"steps", p.steps},         {"teams", p.teams},
          {"together", p.together},   {"query_share", p.query_share}, {"compacting", p.compacting},
          {"narrow", p.narrow},       {"run", p.run},             {"kept", p.kept},
          {"macros", p.macros},       {"team_threads", 1 << p.team_shift},       {"scan_rows", kScanRows},
          {"pack_rows", kPackRows},
          {"compact_rows", kCompactRows}, {"block", kBlock},      {"blocks", parts_->at.blocks},
          {"threads", parts_->threads},   {"shared_bytes", parts_->at.shared_bytes}, {"hopper", parts_->at.way == Way::hopper}};
}

std::vector<Segment> Planned::segments() const {
  constexpr const char* kNames[] = {"scan", "pack references", "pack queries", "tiles", "compact", "rows"};
  static_assert(int(Job::direct) == std::size(kNames));
  const Schedule schedule(parts_->a);
  std::vector<Segment> found;
  for (Cursor c = schedule.start();; schedule.advance(c)) {
    if (c.job == Job::direct) break;
    const int64_t jobs = c.job == Job::tiles ? int64_t(schedule.queries(c)) * schedule.across(c) : c.count;  // not runs of them
    // Of two macro-blocks: as many meetings as a batch packed at once has held when its rows have seen as many references.
    const bool pair = !schedule.among_themselves(c);
    const int seen = pair ? int(schedule.meetings(c, schedule.first_query(c))) : 0;
    const int met = pair ? (seen - schedule.references(c) + 1) / 2 : c.met, meets = pair ? (seen + 1) / 2 : c.meets;
    found.push_back({kNames[int(c.job)], jobs, c.panel, c.step, met, meets});
  }
  const Plan& plan = parts_->a.plan;
  if (plan.tiles) return found;  // how many of the rows failed only the launch will know
  if (plan.dense_rows == 0) {
    found.push_back({"direct", ceil_div(parts_->a.p.B, schedule.direct_rows()), 0, 0, 0, 0});
    return found;
  }
  const Rounds rounds(parts_->a, parts_->a.p.B);
  for (RoundAt at = rounds.start(); rounds.rounds() > at.round; rounds.seek(at, at.first + at.count))
    found.push_back({at.select ? "select" : "dense", at.count, 0, at.round, 0, 0});
  return found;
}

// ---------------------------------------------------------------------------------- launching

std::vector<unsigned> state_of(int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  const auto on = pointer<CUstream_st>(stream);
  const KeptStates::State state = kept_states().of(device, on);
  std::vector<unsigned> words(state.words);
  LDREG_CUDA_CHECK(cudaStreamSynchronize(on));
  LDREG_CUDA_CHECK(cudaMemcpy(words.data(), state.data, words.size() * sizeof(unsigned), cudaMemcpyDeviceToHost));
  return words;
}

void Planned::launch(const Tensors& at, uintptr_t workspace, uintptr_t stream) const {
  const Parts& parts = *parts_;
  try {
    const DeviceGuard guard(parts.call.device);
    const auto on = pointer<CUstream_st>(stream);
    Arguments a = parts.a;
    put_tensors(parts.call, at, a);
    unsigned* state = is_capturing(on) ? captured_state(workspace + parts.space, parts.state_words, on)
                                       : kept_state(parts.call.device, on, parts.state_words);
    lay_out(a.p, a.plan, pointer<char>(workspace), state, a.s);
    if (parts.at.way == Way::hopper) describe_operands(a);
    LaunchAt where = parts.at;
    where.stream = on;
    switch (parts.call.dtype) {
      case DType::f32: return launch_kernel<float>(a, where);
      case DType::f64: return launch_kernel<double>(a, where);
      case DType::bf16: return launch_kernel<__nv_bfloat16>(a, where);
      case DType::f16: return launch_kernel<__half>(a, where);
    }
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("launching the kernel for " + shape_of(parts.call) + ": " + error.what());
  }
}

}  // namespace ldreg::cuda
