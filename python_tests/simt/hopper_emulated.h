// The instructions of csrc/cuda/hopper.h, and csrc/cuda/tensor_map.h, on the machine of simt.h.
//
// Contract: the functions there. Timing is the worst that PTX allows, in an order that depends on the launch's seed: a
// box lands late, while somebody waits for an mbarrier, and its destination is NaN until then; a box reads its source
// when it is issued or when it lands, and so do rows, brought by the copy engine or by threads; products read their
// operands when they are issued or when their group is waited for; sums are NaN from the first product to
// warpgroup_finish. A broken rule is an error that names the thread. What it does not show: a missing fence_proxy_async,
// and how tensor cores round (sums here are plain float32 sums).
#pragma once

#include "emulated.h"

#include <cuda.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <stdexcept>
#include <vector>

#define LDREG_HOPPER 1

namespace simt::hopper {

using namespace emulated;

// ---------------------------------------------------------------- tensor_map.h

constexpr int kBoxRows = 128, kBoxColumns = 64;

inline CUtensorMap tensor_map(const void* rows, uint64_t row_count, uint64_t columns) {
  if (reinterpret_cast<uintptr_t>(rows) % 16 || row_count == 0 || columns == 0 || columns % 8)
    throw std::runtime_error("a tensor map of " + std::to_string(row_count) + " rows of " + std::to_string(columns) +
                             " halves, or not 16-byte aligned");
  return {rows, row_count, columns};
}

// ---------------------------------------------------------------- state of a block

constexpr int kBoxBytes = kBoxRows * kBoxColumns * 2, kRowBytes = kBoxColumns * 2;
constexpr int kProductRows = 16, kProductColumns = 128, kProductDepth = 16;  // of one warp
constexpr int kMaxCount = (1 << 20) - 1;                                     // arrivals and bytes of a phase

struct Barrier {
  uint32_t address;
  int arrivals, pending;
  int expected = 0, issued = 0;  // bytes: announced and not landed; of those, of boxes in flight
  uint32_t phase = 0;
  unsigned owner;                // the thread that initialised it
  bool fenced = false;           // the copy engine knows it
};

struct Box {
  CUtensorMap map;
  char* to;
  uint32_t barrier;
  int column, row;
  std::vector<char> data;  // once its source has been read
};

// Bytes on their way to shared memory that count at an mbarrier, by the copy engine; or those of a thread, and its arrival.
struct Piece {
  char* to;
  const char* from;
  std::vector<char> data;  // once its source has been read
  size_t bytes;
};
struct Flight {
  uint32_t barrier;
  bool engine;
  std::vector<Piece> pieces;
};

struct Product {
  uint64_t a, b;
  int accumulate;
  bool operator==(const Product& o) const { return a == o.a && b == o.b && accumulate == o.accumulate; }
};

struct Group {
  std::vector<Product> products;
  size_t done = 0;
};

struct Warp {
  Meeting meeting;
  Product given[32];  // by each lane
  float* sums[32];
  bool fenced = false, in_flight = false;
  Group open;
  std::deque<Group> groups;
  float sum[kProductRows][kProductColumns];
};

// The products that some of its warps have given and others have yet to.
struct Warpgroup {
  std::deque<Product> given;
  uint64_t by_all = 0, by[4] = {};
};

struct State : BlockState {
  std::vector<Barrier> barriers;
  std::vector<Box> boxes;
  std::vector<Flight> flights;
  std::vector<std::vector<Piece>> copied{blockDim.x};  // by each thread, since it last left its arrival to them
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  int elected = static_cast<int>(detail::random() % 32);

  State() : warps((blockDim.x + 31) / 32), warpgroups((blockDim.x + 127) / 128) {}

  const char* unfinished() const override {
    if (!boxes.empty()) return "boxes in flight";
    if (!flights.empty()) return "rows in flight";
    for (const auto& pieces : copied)
      if (!pieces.empty()) return "copies that no arrival follows";
    for (const Warp& warp : warps)
      if (warp.in_flight) return "products in flight";
    for (const Warpgroup& group : warpgroups)
      if (!group.given.empty()) return "products that only a part of a warpgroup has given";
    return nullptr;
  }
};

inline State& state() { return block_state<State>(); }
inline Warp& this_warp() { return state().warps[static_cast<size_t>(warp_of_thread())]; }

// ---------------------------------------------------------------- mbarriers

// What the 8 bytes hold from mbarrier_init to mbarrier_invalidate: whatever else is written there destroys the barrier.
constexpr uint64_t kBarrierBits = 0xBA221E2BA221E2BA;

inline Barrier* find_barrier(uint32_t address) {
  for (Barrier& b : state().barriers)
    if (b.address == address) return &b;
  return nullptr;
}

inline Barrier& barrier_at(uint32_t address) {
  Barrier* barrier = find_barrier(address);
  require(barrier, "use of an mbarrier that is not initialised");
  uint64_t bits;
  std::memcpy(&bits, shared_at(address, 8, 8, "mbarrier"), 8);
  require(bits == kBarrierBits, "the bytes of an mbarrier were overwritten");
  return *barrier;
}

inline uint32_t address_of(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

inline void settle(Barrier& barrier) {
  if (barrier.pending || barrier.expected) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  detail::progress();
}

inline void arrive(const void* p, int bytes, int times = 1) {
  detail::switch_point();
  Barrier& barrier = barrier_at(address_of(p));
  require(barrier.pending >= times && times > 0, "more arrivals at an mbarrier than its phase counts");
  require(bytes >= 0 && barrier.expected + bytes <= kMaxCount, "an mbarrier cannot count so many bytes");
  barrier.expected += bytes;
  barrier.pending -= times;
  settle(barrier);
}

// ---------------------------------------------------------------- boxes

// In the order in which they will lie in shared memory: 16-byte chunk c of row r at c ^ (r % 8).
inline void read_source(Box& box) {
  box.data.assign(kBoxBytes, 0);
  const char* rows = static_cast<const char*>(box.map.rows);
  const auto columns = static_cast<int64_t>(box.map.columns);
  for (int r = 0; r < kBoxRows; ++r) {
    const int64_t row = int64_t(box.row) + r;
    if (row < 0 || row >= static_cast<int64_t>(box.map.row_count)) continue;
    for (int i = 0; i < kBoxColumns; ++i) {
      const int64_t column = int64_t(box.column) + i;
      if (column < 0 || column >= columns) continue;
      const bool chunk = i % 8 == 0 && column + 8 <= columns;  // at once
      std::memcpy(&box.data[static_cast<size_t>(r * kRowBytes + (i / 8 ^ r % 8) * 16 + i % 8 * 2)],
                  rows + (row * columns + column) * 2, chunk ? 16 : 2);
      if (chunk) i += 7;
    }
  }
}

inline void land_one() {
  auto& boxes = state().boxes;
  if (boxes.empty() || !one_in(64)) return;  // dozens of threads poll
  std::swap(boxes[detail::random() % boxes.size()], boxes.back());
  Box box = std::move(boxes.back());
  boxes.pop_back();
  if (box.data.empty()) read_source(box);
  require_covered(box.to, kBoxBytes);
  std::memcpy(box.to, box.data.data(), kBoxBytes);
  Barrier& barrier = barrier_at(box.barrier);
  barrier.expected -= kBoxBytes;
  barrier.issued -= kBoxBytes;
  detail::progress();
  settle(barrier);
}

// ---------------------------------------------------------------- rows

inline Piece piece_of(void* to, const void* from, size_t bytes, size_t alignment, const char* who) {
  require(reinterpret_cast<uintptr_t>(from) % alignment == 0, "a row that is copied from an address not so aligned");
  Piece piece{shared_at(address_of(to), bytes, alignment, who), static_cast<const char*>(from), {}, bytes};
  for (const Flight& flight : state().flights)
    for (const Piece& other : flight.pieces)
      require(other.to + other.bytes <= piece.to || piece.to + bytes <= other.to, "two copies in flight to the same place");
  if (one_in(2)) piece.data.assign(piece.from, piece.from + bytes);
  cover(piece.to, bytes);
  return piece;
}

inline void land_flight() {
  auto& flights = state().flights;
  if (flights.empty() || !one_in(8)) return;
  std::swap(flights[detail::random() % flights.size()], flights.back());
  Flight flight = std::move(flights.back());
  flights.pop_back();
  Barrier& barrier = barrier_at(flight.barrier);
  for (Piece& piece : flight.pieces) {
    if (piece.data.empty()) piece.data.assign(piece.from, piece.from + piece.bytes);
    require_covered(piece.to, piece.bytes);
    std::memcpy(piece.to, piece.data.data(), piece.bytes);
    if (flight.engine) barrier.expected -= int(piece.bytes), barrier.issued -= int(piece.bytes);
  }
  if (!flight.engine) {
    require(barrier.pending > 0, "more arrivals at an mbarrier than its phase counts");
    --barrier.pending;
  }
  detail::progress();
  settle(barrier);
}

// ---------------------------------------------------------------- products

inline void require_descriptor(uint64_t d) {
  require(d >> 62 == 1, "a descriptor without the 128-byte swizzle");
  require((d >> 46 & 0xFFFF) == 0 && (d >> 30 & 3) == 0 && (d >> 14 & 3) == 0, "a descriptor with stray bits");
}

// Row `row` of an operand, 16 features, by the descriptor: PTX ISA, "Strides" and "Swizzling modes" of wgmma.
inline void read_row(uint64_t d, int row, float (&out)[kProductDepth]) {
  const uint64_t start = (d & 0x3FFF) << 4, stride = (d >> 32 & 0x3FFF) << 4;
  for (int chunk = 0; chunk < kProductDepth / 8; ++chunk) {
    uint64_t address = start + unsigned(row) / 8 * stride + unsigned(row) % 8 * 128 + unsigned(chunk) * 16;
    address ^= (address >> 7 & 7) << 4;
    __half halves[8];
    std::memcpy(halves, shared_at(address, 16, 16, "an operand of wgmma"), 16);
    for (int i = 0; i < 8; ++i) out[chunk * 8 + i] = __half2float(halves[i]);
  }
}

inline void execute(Warp& warp, const Product& product) {
  static float b[kProductDepth][kProductColumns];  // only one thread runs at a time
  for (int column = 0; column < kProductColumns; ++column) {
    float features[kProductDepth];
    read_row(product.b, column, features);
    for (int k = 0; k < kProductDepth; ++k) b[k][column] = features[k];
  }
  for (int row = 0; row < kProductRows; ++row) {
    float a[kProductDepth];
    read_row(product.a, warp_of_thread() % 4 * kProductRows + row, a);
    float* sum = warp.sum[row];
    if (!product.accumulate) std::fill(sum, sum + kProductColumns, 0.0f);
    for (int k = 0; k < kProductDepth; ++k)
      for (int column = 0; column < kProductColumns; ++column) sum[column] += a[k] * b[k][column];
  }
}

inline void execute(Warp& warp, Group& group) {
  while (group.done < group.products.size()) execute(warp, group.products[group.done++]);
}

// By one lane, while the others of its warp wait: all, or all but the newest groups.
inline void complete(Warp& warp, size_t newest) {
  for (; warp.groups.size() > newest; warp.groups.pop_front()) execute(warp, warp.groups.front());
}

// Which of the warp's sums lane l holds as its s-th: PTX ISA, "Register fragments for wgmma.mma_async.m64nNk16", D.
inline float& held(Warp& warp, int l, int s) { return warp.sum[l / 4 + s / 2 % 2 * 8][s / 4 * 8 + l % 4 * 2 + s % 2]; }

inline void require_same_in_warpgroup(const Product& product) {
  require(blockDim.x % 128 == 0, "wgmma in a block that is not of whole warpgroups");
  Warpgroup& group = state().warpgroups[threadIdx.x / 128];
  uint64_t& mine = group.by[warp_of_thread() % 4];
  const uint64_t at = mine++ - group.by_all;
  if (at == group.given.size()) group.given.push_back(product);
  require(group.given[at] == product, "the warps of a warpgroup give different products");
  for (; !group.given.empty() && *std::min_element(group.by, group.by + 4) > group.by_all; ++group.by_all)
    group.given.pop_front();
}

inline void give(Warp& warp) {
  const Product product = warp.given[0];
  for (const Product& other : warp.given) require(other == product, "the lanes of a warp give different products");
  require_descriptor(product.a), require_descriptor(product.b);
  require_same_in_warpgroup(product);
  if (!warp.in_flight) {
    require(warp.fenced, "the first product has no warpgroup_arrive before it");
    for (int l = 0; l < 32; ++l)
      for (int s = 0; s < 64; ++s) held(warp, l, s) = warp.sums[l][s], warp.sums[l][s] = NAN;
    warp.in_flight = true;
  }
  warp.open.products.push_back(product);
  if (one_in(4)) {  // at once, and what is before it
    for (Group& group : warp.groups) execute(warp, group);
    execute(warp, warp.open);
  }
}

inline void finish(Warp& warp) {
  require(warp.open.products.empty(), "warpgroup_finish before the products' warpgroup_commit");
  complete(warp, 0);
  if (!warp.in_flight) return;
  for (int l = 0; l < 32; ++l)
    for (int s = 0; s < 64; ++s) {
      require(warp.sums[l][s] != warp.sums[l][s], "sums were written while products were in flight");
      warp.sums[l][s] = held(warp, l, s);
    }
  warp.in_flight = warp.fenced = false;
}

// Names the sums of this lane, which have to stay the same from the first product to the end.
inline void name_sums(Warp& warp, float* sum) {
  float*& known = warp.sums[lane_of_thread()];
  require(!warp.in_flight || known == sum, "other sums than those of the products in flight");
  known = sum;
}

// ---------------------------------------------------------------- hopper.h, in its order

inline void mbarrier_init(uint64_t* barrier, int arrivals) {
  const uint32_t address = address_of(barrier);
  require(!find_barrier(address), "mbarrier_init of a live mbarrier");
  require(arrivals > 0 && arrivals <= kMaxCount, "an mbarrier cannot count so many arrivals");
  std::memcpy(shared_at(address, 8, 8, "mbarrier"), &kBarrierBits, 8);
  Barrier fresh{};
  fresh.address = address, fresh.arrivals = fresh.pending = arrivals, fresh.owner = threadIdx.x;
  state().barriers.push_back(fresh);
}

inline void mbarrier_fence_init() {
  for (Barrier& barrier : state().barriers) barrier.fenced |= barrier.owner == threadIdx.x;
}

inline void mbarrier_invalidate(uint64_t* barrier) {
  const Barrier& dying = barrier_at(address_of(barrier));
  require(dying.expected == 0, "mbarrier_invalidate while copies are to come");
  auto& all = state().barriers;
  all.erase(all.begin() + (&dying - all.data()));
}

inline void mbarrier_arrive(uint64_t* barrier) { arrive(barrier, 0); }
inline void mbarrier_arrive_times(uint64_t* barrier, int times) { arrive(barrier, 0, times); }
inline void mbarrier_arrive_expect_tx(uint64_t* barrier, int bytes) { arrive(barrier, bytes); }

inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  detail::switch_point();
  require(parity < 2, "mbarrier_wait for a parity other than 0 or 1");
  while (barrier_at(address_of(barrier)).phase % 2 == parity) {
    land_one();
    land_flight();
    yield();
  }
}

inline void copy_bulk(uint64_t* barrier, void* to, const void* from, int bytes) {
  detail::switch_point();
  Barrier& counts = barrier_at(address_of(barrier));
  require(counts.fenced, "a copy that counts at an mbarrier without mbarrier_fence_init");
  require(bytes > 0 && bytes % 16 == 0, "cp.async.bulk of bytes that are not a multiple of 16");
  counts.issued += bytes;
  require(counts.issued <= counts.expected, "a copy that no mbarrier_arrive_expect_tx has announced");
  state().flights.push_back({counts.address, true, {piece_of(to, from, size_t(bytes), 16, "cp.async.bulk")}});
  detail::switch_point();
}

template <int kBytes>
void copy_async(void* to, const void* from) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  state().copied[threadIdx.x].push_back(piece_of(to, from, kBytes, kBytes, "cp.async"));
}

inline void mbarrier_arrive_when_copied(uint64_t* barrier) {
  detail::switch_point();
  auto& pieces = state().copied[threadIdx.x];
  state().flights.push_back({barrier_at(address_of(barrier)).address, false, std::move(pieces)});
  pieces.clear();
}

inline void tma_load_2d(const CUtensorMap* map, uint64_t* barrier, void* to, int column, int row) {
  detail::switch_point();
  Barrier& counts = barrier_at(address_of(barrier));
  require(counts.fenced, "a copy that counts at an mbarrier without mbarrier_fence_init");
  counts.issued += kBoxBytes;
  require(counts.issued <= counts.expected, "a copy that no mbarrier_arrive_expect_tx has announced");
  Box box{*map, shared_at(address_of(to), kBoxBytes, 1024, "a box"), counts.address, column, row, {}};
  for (const Box& other : state().boxes)
    require(std::abs(other.to - box.to) >= kBoxBytes, "two copies in flight to the same place");
  if (one_in(2)) read_source(box);
  cover(box.to, kBoxBytes);
  state().boxes.push_back(std::move(box));
  detail::switch_point();
}

inline void fence_proxy_async() { detail::switch_point(); }

inline void warpgroup_arrive() {
  Warp& warp = this_warp();
  if (warp.meeting.leads("wgmma.fence")) warp.fenced = true;
}

inline void warpgroup_commit() {
  Warp& warp = this_warp();
  if (!warp.meeting.leads("wgmma.commit_group")) return;
  warp.groups.push_back(std::move(warp.open));
  warp.open = {};
}

template <int N>
void warpgroup_wait() {
  Warp& warp = this_warp();
  if (warp.meeting.leads("wgmma.wait_group")) complete(warp, N);
}

inline void warpgroup_finish(float (&sum)[64]) {
  Warp& warp = this_warp();
  name_sums(warp, sum);
  if (warp.meeting.leads("wgmma.wait_group 0")) finish(warp);
}

inline void wgmma_m64n128k16(float (&sum)[64], uint64_t a, uint64_t b, int accumulate) {
  Warp& warp = this_warp();
  name_sums(warp, sum);
  warp.given[lane_of_thread()] = {a, b, accumulate != 0};
  if (warp.meeting.leads("wgmma.mma_async")) give(warp);
}

// Any lane, as the seed has it: nothing says that it is the first.
inline bool elect_one() {
  __syncwarp();
  return lane_of_thread() == state().elected;
}

}  // namespace simt::hopper

namespace ldreg::cuda {
using simt::hopper::kBoxRows;
using simt::hopper::kBoxColumns;
using simt::hopper::tensor_map;
using simt::hopper::mbarrier_init;
using simt::hopper::mbarrier_fence_init;
using simt::hopper::mbarrier_invalidate;
using simt::hopper::mbarrier_arrive;
using simt::hopper::mbarrier_arrive_times;
using simt::hopper::mbarrier_arrive_expect_tx;
using simt::hopper::mbarrier_wait;
using simt::hopper::tma_load_2d;
using simt::hopper::copy_bulk;
using simt::hopper::copy_async;
using simt::hopper::mbarrier_arrive_when_copied;
using simt::hopper::fence_proxy_async;
using simt::hopper::warpgroup_arrive;
using simt::hopper::warpgroup_commit;
using simt::hopper::warpgroup_wait;
using simt::hopper::warpgroup_finish;
using simt::hopper::wgmma_m64n128k16;
using simt::hopper::elect_one;
}  // namespace ldreg::cuda
