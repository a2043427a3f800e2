// The instructions of csrc/cuda/mainloop_mma.h on the machine of simt.h: cp.async, ldmatrix, mma.sync.
//
// Contract: the functions of namespace mma there. Copies are as late as PTX allows: one lands when its own thread waits
// for its group, its destination is NaN until then, and it reads its source when it is issued or when it lands, as the
// launch's seed has it. Wrong addresses, and copies that nobody waits for, are errors. Sums are plain float32 sums.
#pragma once

#include "emulated.h"

#include <cuda_fp16.h>

#include <deque>
#include <vector>

namespace simt::mma {

using namespace emulated;

struct Copy {
  char* to;
  const void* from;
  bool read;  // already in `data`
  char data[16];
};

struct Thread {
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

struct Lane {
  uint32_t address, matrix[4];  // ldmatrix
  uint32_t a[4], b[2];          // mma
  float sum[4];
};

struct Warp {
  Meeting meeting;
  Lane lane[32];
};

struct State : BlockState {
  std::vector<Thread> threads = std::vector<Thread>(blockDim.x);
  std::vector<Warp> warps = std::vector<Warp>((blockDim.x + 31) / 32);
  const char* unfinished() const override {
    for (const Thread& thread : threads) {
      if (!thread.open.empty()) return "copies that belong to no group";
      for (const auto& group : thread.groups)
        if (!group.empty()) return "copies that nobody has waited for";
    }
    return nullptr;
  }
};

inline Thread& this_thread() { return block_state<State>().threads[threadIdx.x]; }
inline Warp& this_warp() { return block_state<State>().warps[static_cast<size_t>(warp_of_thread())]; }

inline void land(Copy& copy) {
  if (!copy.read) std::memcpy(copy.data, copy.from, 16);
  require_covered(copy.to, 16);
  std::memcpy(copy.to, copy.data, 16);
}

inline float half_of(uint32_t two, int i) { return __half2float({static_cast<unsigned short>(two >> 16 * i)}); }

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
inline void multiply_fragments(Lane (&lane)[32]) {
  float a[16][16], b[16][8], sum[16][8];
  for (int l = 0; l < 32; ++l) {
    const int group = l / 4, pair = l % 4 * 2;
    for (int r = 0; r < 4; ++r)
      for (int i = 0; i < 2; ++i) a[group + r % 2 * 8][pair + i + r / 2 * 8] = half_of(lane[l].a[r], i);
    for (int r = 0; r < 2; ++r)
      for (int i = 0; i < 2; ++i) b[pair + i + r * 8][group] = half_of(lane[l].b[r], i);
    for (int i = 0; i < 4; ++i) sum[group + i / 2 * 8][pair + i % 2] = lane[l].sum[i];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) sum[row][column] += a[row][k] * b[k][column];
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i) lane[l].sum[i] = sum[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
}

// ---------------------------------------------------------------- mainloop_mma.h

// 8 x 8 matrices that ldmatrix has read in this process, and those whose rows share a bank, which costs time.
inline uint64_t matrices_read = 0, matrices_with_conflicts = 0;

inline void copy_16(uint32_t to, const void* from) {
  detail::switch_point();
  require(reinterpret_cast<uintptr_t>(from) % 16 == 0, "cp.async from an address that is not a multiple of 16");
  Copy copy{shared_at(to, 16, 16, "cp.async"), from, one_in(2), {}};
  if (copy.read) std::memcpy(copy.data, from, 16);
  cover(copy.to, 16);
  this_thread().open.push_back(copy);
}

inline void commit_copies() {
  Thread& thread = this_thread();
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}

template <int N>
void wait_copies() {
  detail::switch_point();
  for (Thread& thread = this_thread(); thread.groups.size() > N; thread.groups.pop_front())
    for (Copy& copy : thread.groups.front()) land(copy);
}

inline void load_matrices(uint32_t (&r)[4], uint32_t from) {
  Warp& warp = this_warp();
  Lane& self = warp.lane[lane_of_thread()];
  self.address = from;
  if (warp.meeting.leads("ldmatrix")) {
    for (int i = 0; i < 4; ++i) {
      unsigned banks = 0;  // of the eight groups of four
      for (int row = 0; row < 8; ++row) {
        const uint32_t address = warp.lane[8 * i + row].address;
        const char* data = shared_at(address, 16, 16, "ldmatrix");
        for (int pair = 0; pair < 4; ++pair) std::memcpy(&warp.lane[4 * row + pair].matrix[i], data + 4 * pair, 4);
        banks |= 1u << address / 16 % 8;
      }
      ++matrices_read;
      matrices_with_conflicts += banks != 255;
    }
  }
  std::memcpy(r, self.matrix, 16);
}

inline void multiply_add(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Warp& warp = this_warp();
  Lane& self = warp.lane[lane_of_thread()];
  std::memcpy(self.a, a, 16);
  self.b[0] = b0, self.b[1] = b1;
  self.sum[0] = d0, self.sum[1] = d1, self.sum[2] = d2, self.sum[3] = d3;
  if (warp.meeting.leads("mma.sync")) multiply_fragments(warp.lane);
  d0 = self.sum[0], d1 = self.sum[1], d2 = self.sum[2], d3 = self.sum[3];
}

}  // namespace simt::mma

namespace ldreg::cuda {
namespace mma = simt::mma;
}
