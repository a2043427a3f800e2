// The one launch: blocks take jobs by ticket until none is left; the last to finish adds up the loss.
//
// Contract: see schedule.h for the order and estimate.h for what comes out. T is the features' type, Stage the tile stage:
// TileStage or HopperTileStage, or NoTiles where every pair is computed anyway. The state is 0 again when the launch ends.
//
// All stages share the registers of one kernel, 96 a thread on Hopper, 64 of them the sums of the tensor cores while a product
// is under way. So stages keep what they know in shared memory and pass offsets on, not pointers; and everything is in line,
// because around a call the compiler keeps those sums, and has few left.
#pragma once

#include "control.h"
#include "direct.h"
#include "loss.h"
#include "rows.h"
#include "select.h"
#include "tile_stage.h"
#include "watchdog.h"

namespace ldreg::cuda {

// Where every pair is computed anyway: doubles are never packed, and long lists may be dearer (plan.h).
struct NoTiles {
  static constexpr bool kLooksAhead = false, kCompiled = true, kPairsOnly = true, kBulk = false;
  static constexpr int kThreads = 256, kWidth = 1, kStep = 64, kSharedBytes = 0, kKeptColumns = 0, kDenseThreads = 256,
                       kDenseBytes = DenseShape<double, kDenseThreads>::kBytes;
  static __device__ void run(const Cursor&, unsigned, TileAt&, char*, const TensorMap*) {}
};

// Scan, centre, pack and compact, whose jobs are ranges of rows. Returns the counter that the job counts for.
template <class T>
__device__ inline unsigned* prepare_job(const Arguments& a, const Cursor& at, unsigned ticket, char* memory) {
  const Schedule schedule(a);
  const int job = int(ticket - at.first);
  const bool waits = thread_id() == 0;
  switch (at.job) {
    case Job::scan: {
      const int centres = a.plan.tiles ? ceil_div(a.p.D, kCentreColumns) : 0;
      if (job < centres) centre_columns<T>(job, memory);
      else scan_rows<T>(job - centres);
      return a.s.state + kScanned;
    }
    case Job::pack_references: {
      const Packing packing = schedule.packing(at);
      if (waits) {
        wait_for(a.s.state + kScanned, schedule.scan_jobs());
        if (!a.plan.once) wait_for(a.s.state + kTiled + packing.buffer, at.tiles[packing.buffer]);  // the buffer is free again
      }
      __syncthreads();
      pack_rows<T>(false, packing.first + job * kPackRows, packing.end, 0, packing.base);
      return a.s.state + kPackedReferences + packing.buffer;
    }
    case Job::pack_queries: {
      if (waits) {
        wait_for(a.s.state + kScanned, schedule.scan_jobs());
        wait_for(a.s.state + kRowsDone, at.rows);  // the panel before is through with operands and lists
      }
      __syncthreads();
      const int top = schedule.top(at.panel);
      pack_rows<T>(true, job * kPackRows, schedule.bottom(at.panel) - top, top, 0);
      return a.s.state + kPackedQueries;
    }
    default: {
      const int panel_rows = schedule.bottom(at.panel) - schedule.top(at.panel);
      const int first = schedule.compacted(at, job), block = first / kBlock;
      if (waits) wait_for(a.s.arrivals + schedule.block_of(at.panel, block), schedule.meetings(at, block));
      __syncthreads();
      const int warps = smaller(blockDim.x / kWarp, a.plan.compacting);
      char* room = memory + warp_id() * compact_bytes(a.plan.cap);
      if (warp_id() < warps) {
        for (int slot = first + warp_id(); slot < smaller(first + kCompactRows, panel_rows); slot += warps)
          compact_list(at, schedule.complete(at, block), slot, room);
      }
      __syncthreads();
      if (waits) signal(a.s.ready + schedule.block_of(at.panel, block));
      return a.s.state + kCompacted;
    }
  }
}

template <class T>
__device__ __forceinline__ void finish(Control& control, char* memory) {
  const Arguments& a = arguments();
  __syncthreads();
  if (thread_id() == 0) {
    device_fence();
    control.last = atomicAdd(a.s.state + kFinished, 1u) == gridDim.x - 1;
    device_fence();
  }
  __syncthreads();
  if (!control.last) return;
  if (a.r.loss) write_loss<RealOf<T>>(a, reinterpret_cast<double*>(memory));
  __syncthreads();
  const int words = kFixedWords + (a.plan.tiles ? 2 * ceil_div(a.p.B, kBlock) : 0);  // arrivals and ready follow
  for (int i = thread_id(); i < words; i += blockDim.x) a.s.state[i] = 0;
}

// The next job, to the control block.
__device__ inline Job next_job(Control& control) {
  const Arguments& a = arguments();
  __syncthreads();  // everyone is through with the last job and its shared memory
  if (thread_id() == 0) {
    control.ticket = atomicAdd(a.s.state + kTicket, 1u);
    Schedule(a).seek(control.at, control.ticket);
  }
  __syncthreads();
  return control.at.job;
}

// Works off jobs until one is for the tile stage, or the last.
template <class T, class Stage>
__device__ __forceinline__ void work(Control& control, char* memory) {
  const Arguments& a = arguments();
  for (Job job = control.at.job; job != Job::tiles && job != Job::direct; job = next_job(control)) {
    unsigned* done;
    if (job == Job::rows) {
      if constexpr (sizeof(RealOf<T>) == 4) rows_job<T, Stage::kBulk>(control.at, control.ticket);
      done = a.s.state + kRowsDone;
    } else {
      done = prepare_job<T>(a, control.at, control.ticket, memory);
    }
    __syncthreads();
    if (thread_id() == 0) signal(done);
  }
}

// Rows that need every pair, control.rows of them, by tiles that all blocks share.
template <class T, class Stage>
__device__ __forceinline__ void work_densely(Control& control) {
  const Arguments& a = arguments();
  const Rounds rounds(a, control.rows);
  if (thread_id() == 0) control.round = rounds.start();
  while (true) {
    const RoundAt& at = control.round;
    if (thread_id() == 0) {
      rounds.seek(control.round, control.ticket - control.at.first);
      if (at.round < rounds.rounds()) await_round(rounds, at);
    }
    __syncthreads();
    if (at.round >= rounds.rounds()) return;
    const int job = int(control.ticket - control.at.first - at.first), parity = at.round % 2;
    if (at.select) select_job<T>(rounds, at, job);
    else DenseTile<T, DenseShape<RealOf<T>, Stage::kDenseThreads>>::run(rounds, at, job);
    __syncthreads();
    if (thread_id() == 0) signal(a.s.state + (at.select ? kSelected : kDense) + parity);
    next_job(control);
  }
}

// The jobs behind all others: rows that need every pair. Only now is it known how many.
template <class T, class Stage>
__device__ __forceinline__ void work_directly(Control& control) {
  const Arguments& a = arguments();
  const Schedule schedule(a);
  if (thread_id() == 0) {
    if (a.plan.tiles) wait_for(a.s.state + kCompacted, control.at.compacts);
    else wait_for(a.s.state + kScanned, schedule.scan_jobs());
    control.rows = a.plan.tiles ? int(a.s.state[kFailed]) : a.p.B;
  }
  __syncthreads();
  if constexpr (Stage::kPairsOnly) {
    if (a.plan.dense_rows == 0) {
      const auto job = [&] { return int(control.ticket - control.at.first); };
      while (job() < ceil_div(control.rows, schedule.direct_rows())) {
        direct_job<T>(job(), control.rows);
        next_job(control);
      }
      return;
    }
  }
  work_densely<T, Stage>(control);
}

template <class T, class Stage>
__device__ __forceinline__ void ldreg_block(const Arguments& given) {
  Control& control = *reinterpret_cast<Control*>(shared_memory());
  char* memory = shared_memory() + kControlBytes;
  for (int i = thread_id(); i < int(sizeof(Arguments) / sizeof(int)); i += Stage::kThreads)
    reinterpret_cast<int*>(shared_memory() + kArgumentsAt)[i] = reinterpret_cast<const int*>(&given)[i];
  __syncthreads();
  if (thread_id() == 0) control.at = Schedule(arguments()).start();
  next_job(control);
  while (control.at.job != Job::direct) {
    work<T, Stage>(control, memory);
    if (control.at.job == Job::tiles) Stage::run(control.at, control.ticket, control.tile, memory, given.maps);
    if (!Stage::kLooksAhead && control.at.job == Job::tiles) next_job(control);
  }
  work_directly<T, Stage>(control);
  finish<T>(control, memory);
}

template <class T, class Stage>
__global__ void __launch_bounds__(Stage::kThreads, 1) ldreg_kernel(const __grid_constant__ Arguments a) {
  if constexpr (Stage::kCompiled) ldreg_block<T, Stage>(a);  // for this architecture
}

}  // namespace ldreg::cuda
