// The machine of simt.h: fibers, their stacks, the scheduler, barriers and warp collectives.
//
// The scheduler knows warps, and of each a mask of the lanes that can run. Who waits where is in masks too, so that a
// barrier or collective that opens costs a few instructions per warp. A thread that waits switches straight to the next
// one; launch() itself runs only to start blocks and to end the launch.

// glibc's checked longjmp refuses to leave a stack for another.
#undef _FORTIFY_SOURCE

#include "simt.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(LDREG_SIMT_UCONTEXT)
#define LDREG_SIMT_ASM 1
#else
#include <setjmp.h>
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx{0, 0, 0}, blockIdx{0, 0, 0};
dim3 blockDim, gridDim;

// ---------------------------------------------------------------- contexts

#if defined(LDREG_SIMT_ASM)

#if defined(__APPLE__)
#define SIMT_SYMBOL "_ldreg_simt_switch"
#define SIMT_HIDE ".private_extern " SIMT_SYMBOL "\n"
#else
#define SIMT_SYMBOL "ldreg_simt_switch"
#define SIMT_HIDE ".hidden " SIMT_SYMBOL "\n"
#endif

// ldreg_simt_switch(void** save, void* load): what a call must preserve goes to the stack, then the stack is another.
// Floating-point modes are not saved: no thread changes them.
#if defined(__x86_64__)
// A jump in place of `ret`: the processor predicts returns from the calls of the stack that was left.
asm(".text\n.globl " SIMT_SYMBOL "\n" SIMT_HIDE ".p2align 4\n" SIMT_SYMBOL ":\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  popq %rcx\n"
    "  jmp *%rcx\n");
#else
asm(".text\n.globl " SIMT_SYMBOL "\n" SIMT_HIDE ".p2align 4\n" SIMT_SYMBOL ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n");
#endif
extern "C" void ldreg_simt_switch(void** save, void* load);

#endif

namespace simt {
namespace {

struct Context {
  char* bottom = nullptr;
  size_t bytes = 0;
#if defined(LDREG_SIMT_ASM)
  void* stack_pointer;

  void start(void (*entry)(), size_t top) {
    void** sp = reinterpret_cast<void**>(bottom + top);
#if defined(__x86_64__)
    *--sp = nullptr;  // where a return address would be: debuggers stop here, and the stack is aligned as by a call
    *--sp = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--sp = nullptr;
#else
    sp -= 20;
    std::fill(sp, sp + 20, nullptr);
    sp[11] = reinterpret_cast<void*>(entry);
#endif
    stack_pointer = sp;
  }
  static void swap(Context& from, Context& to) { ldreg_simt_switch(&from.stack_pointer, to.stack_pointer); }
#else
  jmp_buf jump;
  ucontext_t first;
  bool fresh = false;

  void start(void (*entry)(), size_t top) {
    getcontext(&first);
    first.uc_stack.ss_sp = bottom;
    first.uc_stack.ss_size = top;
    first.uc_link = nullptr;
    makecontext(&first, entry, 0);
    fresh = true;
  }
  // setcontext restores the signal mask by a system call, so it is used only to get onto the stack.
  static void swap(Context& from, Context& to) {
    if (_setjmp(from.jump)) return;
    if (!to.fresh) _longjmp(to.jump, 1);
    to.fresh = false;
    setcontext(&to.first);
  }
#endif

#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

void switch_context(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
  Context::swap(from, to);
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#else
  Context::swap(from, to);
#endif
}

// ---------------------------------------------------------------- state

using detail::Collective;
using detail::Type;

constexpr int kLanes = 32, kMaxWarps = 32, kBarriers = 16;
constexpr size_t kGuardBytes = 1024;
// A NaN in every floating-point format, as what lies between the guards is, but not a value that is often stored.
constexpr uint16_t kGuardPattern = 0xFFF5;
constexpr unsigned kQuantum = 2048;  // lanes that one warp may run while others wait

struct Block;
struct Warp;

struct Fiber {
  Context context;
  Warp* warp;
  Block* block;
  unsigned lane, thread;
};

// Lanes that meet at a warp collective.
struct Group {
  uint32_t mask, arrived;
  Collective op;
  Type type;
};

struct Warp {
  uint32_t ready;    // lanes that can run
  uint32_t yielded;  // that can run after the other warps had their turn
  uint32_t live;     // that exist and have not ended
  uint32_t all;      // that exist
  unsigned cursor;   // the lane whose turn it is
  bool queued;       // it has its place in the order of warps
  size_t place;      // with a seed: where
  int groups;
  Group group[kLanes];
  uint64_t value[kLanes], result[kLanes];
  int argument[kLanes], width[kLanes];
  Block* block;
  Fiber* fibers;
};

struct Barrier {
  int count, arrived;
  uint32_t waiting[kMaxWarps];
};

struct Block {
  unsigned index;
  bool running = false;
  unsigned live;
  char* shared;
  std::vector<char> memory;  // of shared and its guards
  Barrier barrier[kBarriers];
  std::vector<Warp> warps;
  std::vector<Fiber> fibers;
  std::vector<std::pair<const void*, std::unique_ptr<BlockState>>> states;
};

// Stacks are kept for the next launch.
class Stacks {
 public:
  // To be called while no fiber is on one.
  void prepare(size_t count) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = (std::max<size_t>(options().stack_bytes, 16 << 10) + kSpread + page - 1) / page * page;
    if (bytes != bytes_) {
      for (char* stack : stacks_) munmap(stack - page, page + bytes_);
      stacks_.clear();
      bytes_ = bytes;
    }
    while (stacks_.size() < count) {
      void* memory = mmap(nullptr, page + bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      stacks_.push_back(static_cast<char*>(memory) + page);
      if (mprotect(memory, page, PROT_NONE)) throw std::bad_alloc();
    }
  }

  void start(Context& context, size_t i, void (*entry)()) {
    context.bottom = stacks_[i];
    context.bytes = bytes_;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(stacks_[i], bytes_);  // an earlier fiber may have been left in the middle of a call
#endif
    // Tops at different offsets in the page: at equal ones all stacks would compete for the same few cache lines.
    context.start(entry, bytes_ - i * 256 % kSpread);
  }

 private:
  static constexpr size_t kSpread = 4096;
  std::vector<char*> stacks_;
  size_t bytes_ = 0;
};

struct Machine {
  Launch launch;
  const std::function<void()>* kernel = nullptr;  // set while a launch runs
  Context main;
  Fiber* current = nullptr;
  Warp* warp = nullptr;                        // whose turn it is
  unsigned budget = 0;                         // lanes it may still run in this turn
  std::vector<Warp*> order;                    // without a seed a ring of `mask` + 1 places, with a seed a set
  size_t head = 0, tail = 0, mask = 0;
  uint64_t random = 0;
  unsigned keep = 0;                           // with a seed: of 256 choices, how many stay with the warp
  bool naps = false;                           // with seeds 3, 7, 11, ...: warps fall asleep, one at a time
  Warp* asleep = nullptr;                      // whichever does
  unsigned left = 0;                           // choices until it wakes up or the next one falls asleep
  std::exception_ptr error;
  std::vector<std::unique_ptr<Block>> blocks;  // the resident ones
  Stacks stacks;
};

Machine m;

uint32_t next_random() {
  m.random += 0x9E3779B97F4A7C15ull;
  uint64_t z = m.random;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return static_cast<uint32_t>(z >> 32);
}

uint32_t bit(unsigned lane) { return uint32_t(1) << lane; }
unsigned lowest(uint32_t bits) { return static_cast<unsigned>(__builtin_ctz(bits)); }

// ---------------------------------------------------------------- words

const char* const kOps[] = {"__syncwarp", "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync",
                            "__ballot_sync", "__any_sync", "__all_sync", "__reduce_add_sync", "__reduce_min_sync",
                            "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync", "__reduce_xor_sync"};
const char* const kTypes[] = {"", "int", "unsigned", "long long", "unsigned long long", "float", "double"};

std::string call_name(Collective op, Type type) {
  const std::string name = kOps[static_cast<unsigned>(op)];
  return type == Type::none ? name : name + "(" + kTypes[static_cast<unsigned>(type)] + ")";
}

std::string hex(uint32_t mask) {
  std::string text = "0x";
  for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[mask >> shift & 15];
  return text;
}

// "0-31, 40" of up to 1024 threads, given as one mask per warp.
std::string threads_text(const uint32_t* masks, size_t warps) {
  std::string text;
  const unsigned n = static_cast<unsigned>(warps) * kLanes;
  const auto has = [&](unsigned t) { return t < n && (masks[t / kLanes] >> t % kLanes & 1); };
  for (unsigned t = 0; t < n; ++t) {
    if (!has(t)) continue;
    const unsigned first = t;
    while (has(t + 1)) ++t;
    text += (text.empty() ? "" : ", ") + std::to_string(first) + (t > first ? "-" + std::to_string(t) : "");
  }
  return text;
}

std::string lanes_text(const Warp& warp, uint32_t lanes) {
  uint32_t masks[kMaxWarps] = {};
  const size_t index = &warp - warp.block->warps.data();
  masks[index] = lanes;
  return threads_text(masks, index + 1);
}

std::string thread_name(const Fiber& fiber) {
  return "block " + std::to_string(fiber.block->index) + " thread " + std::to_string(fiber.thread);
}

std::string barrier_name(int id, int count) {
  if (id == 0 && count == static_cast<int>(m.launch.block)) return "__syncthreads";
  return "barrier(" + std::to_string(id) + ", " + std::to_string(count) + ")";
}

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error("simt: " + what); }

// What the threads of each block wait for: "block 0: 31 __syncthreads, 1 able to run".
std::string waits() {
  std::string text;
  for (const auto& block : m.blocks) {
    if (!block->running) continue;
    std::vector<std::pair<std::string, int>> kinds;
    const auto add = [&](const std::string& kind, int count) {
      if (count == 0) return;
      for (auto& known : kinds)
        if (known.first == kind) {
          known.second += count;
          return;
        }
      kinds.emplace_back(kind, count);
    };
    for (int id = 0; id < kBarriers; ++id) {
      const Barrier& b = block->barrier[id];
      if (b.arrived) add("at " + barrier_name(id, b.count), b.arrived);
    }
    for (const Warp& w : block->warps) {
      for (int g = 0; g < w.groups; ++g)
        add("at " + call_name(w.group[g].op, w.group[g].type) + " of lanes " + hex(w.group[g].mask),
            __builtin_popcount(w.group[g].arrived));
      add("able to run or in yield()", __builtin_popcount(w.ready | w.yielded));
    }
    add("ended", static_cast<int>(m.launch.block - block->live));
    text += "\n  block " + std::to_string(block->index) + ": ";
    for (size_t i = 0; i < kinds.size(); ++i)
      text += (i ? ", " : "") + std::to_string(kinds[i].second) + " " + kinds[i].first;
  }
  return text;
}

// ---------------------------------------------------------------- scheduler

void enqueue(Warp& w) {
  w.queued = true;
  if (detail::random_order) {
    w.place = m.order.size();
    m.order.push_back(&w);
  } else {
    m.order[m.tail++ & m.mask] = &w;
  }
}

void wake(Warp& w, uint32_t lanes) {
  w.ready |= lanes;
  if (!w.queued) enqueue(w);
}

Fiber* take(Warp& w, unsigned start) {
  const uint32_t later = w.ready & (~uint32_t(0) << start);
  const unsigned lane = lowest(later ? later : w.ready);
  w.ready &= ~bit(lane);
  w.cursor = (lane + 1) % kLanes;
  return &w.fibers[lane];
}

// The next thread to run, no longer ready; nullptr if there is none.
Fiber* pick_in_order() {
  for (;;) {
    if (Warp* w = m.warp) {
      if (w->ready && m.budget) {
        --m.budget;
        return take(*w, w->cursor);
      }
      w->ready |= w->yielded;
      w->yielded = 0;
      if (w->ready) enqueue(*w);
      else w->queued = false;
      m.warp = nullptr;
    }
    if (m.head == m.tail) return nullptr;
    m.warp = m.order[m.head++ & m.mask];
    m.budget = kQuantum;
  }
}

// A warp that sleeps runs only if no other can: others get far ahead of it, however little it has to do.
void change_sleeper() {
  if (m.left-- > 0) return;
  m.asleep = m.asleep ? nullptr : m.order[next_random() % m.order.size()];
  m.left = 512u << next_random() % 8;
}

Fiber* pick_at_random() {
  for (;;) {
    if (m.order.empty()) return nullptr;
    if (m.naps) change_sleeper();
    const uint32_t r = next_random();
    // Seeds differ in how long they stay with a warp: some races need one far ahead of the others.
    Warp* w = m.warp;
    if (!w || !w->queued || (r & 255) >= m.keep) w = m.order[(r >> 13) % m.order.size()];
    if (w->ready) {
      m.warp = w == m.asleep ? nullptr : w;
      if (w == m.asleep && m.order.size() > 1) continue;
      return take(*w, r >> 8 & 31);
    }
    m.order[w->place] = m.order.back();
    m.order[w->place]->place = w->place;
    m.order.pop_back();
    w->queued = false;
  }
}

Fiber* pick() { return detail::random_order ? pick_at_random() : pick_in_order(); }

void switch_to(Fiber* to) {
  Fiber* from = m.current;
  if (to == from) return;
  m.current = to;
  if (to) {
    threadIdx.x = to->thread;
    blockIdx.x = to->block->index;
  }
  switch_context(from ? from->context : m.main, to ? to->context : m.main);
}

Fiber& current() {
  if (!m.current) fail("a device function was called outside of a launch");
  return *m.current;
}

void count_stall() {
  if (++detail::stalled <= options().stall_limit) return;
  detail::stalled = 0;
  fail("no progress in " + std::to_string(options().stall_limit) +
       " yields and collectives, threads wait for memory that nobody changes:" + waits());
}

// The threads still waiting will never be enough.
void check_barrier_reachable(const Block& block, int id) {
  const Barrier& b = block.barrier[id];
  if (b.arrived == 0) return;
  int waiting = 0;
  for (size_t w = 0; w < block.warps.size(); ++w) waiting += __builtin_popcount(b.waiting[w]);
  if (waiting == 0 || b.count - b.arrived <= static_cast<int>(block.live) - waiting) return;
  uint32_t ended[kMaxWarps];
  for (size_t w = 0; w < block.warps.size(); ++w) ended[w] = block.warps[w].all & ~block.warps[w].live;
  fail("block " + std::to_string(block.index) + ": threads " + threads_text(b.waiting, block.warps.size()) +
       " wait at " + barrier_name(id, b.count) + " but threads " + threads_text(ended, block.warps.size()) +
       " have ended");
}

void end_thread(Fiber& fiber) {
  Warp& w = *fiber.warp;
  Block& block = *fiber.block;
  w.live &= ~bit(fiber.lane);
  --block.live;
  detail::progress();
  for (int g = 0; g < w.groups; ++g)
    if (w.group[g].mask & bit(fiber.lane))
      fail(thread_name(fiber) + " ended while threads " + lanes_text(w, w.group[g].arrived) + " wait for it at " +
           call_name(w.group[g].op, w.group[g].type));
  for (int id = 0; id < kBarriers; ++id) check_barrier_reachable(block, id);
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!m.main.bottom) m.main.bottom = static_cast<char*>(const_cast<void*>(bottom)), m.main.bytes = bytes;
#endif
  Fiber& self = *m.current;
  try {
    (*m.kernel)();
    end_thread(self);
  } catch (...) {
    m.error = std::current_exception();
  }
  // Not straight to a new block's threads: they may get this stack.
  switch_to(m.error || self.block->live == 0 ? nullptr : pick());
  __builtin_unreachable();
}

// ---------------------------------------------------------------- blocks

void fill_guard(char* at) {
  for (size_t i = 0; i < kGuardBytes; i += 2) std::memcpy(at + i, &kGuardPattern, 2);
}

void check_guard(const Block& block, const char* at) {
  for (size_t i = 0; i < kGuardBytes; ++i)
    if (static_cast<unsigned char>(at[i]) != (i % 2 == 0 ? kGuardPattern & 255 : kGuardPattern >> 8))
      fail("block " + std::to_string(block.index) + " wrote outside of its shared memory, at byte " +
           std::to_string(at + i - block.shared) + " of " + std::to_string(m.launch.shared_bytes));
}

void check_guards(const Block& block) {
  check_guard(block, block.shared - kGuardBytes);
  check_guard(block, block.shared + m.launch.shared_bytes);
}

void check_states(const Block& block) {
  for (const auto& state : block.states)
    if (const char* what = state.second->unfinished())
      fail("block " + std::to_string(block.index) + " has ended with " + what);
}

void start_block(Block& block, size_t slot, unsigned index) {
  const unsigned threads = m.launch.block;
  block.index = index;
  block.running = true;
  block.live = threads;
  block.states.clear();
  for (Barrier& b : block.barrier) b = Barrier{};
  fill_guard(block.shared - kGuardBytes);
  std::memset(block.shared, 0xFF, m.launch.shared_bytes);
  fill_guard(block.shared + m.launch.shared_bytes);

  for (size_t i = 0; i < block.warps.size(); ++i) {
    Warp& w = block.warps[i];
    const unsigned lanes = std::min<unsigned>(kLanes, threads - static_cast<unsigned>(i) * kLanes);
    w.live = w.all = lanes == kLanes ? ~uint32_t(0) : bit(lanes) - 1;
    w.ready = w.yielded = 0;
    w.cursor = 0;
    w.groups = 0;
    w.block = &block;
    w.fibers = block.fibers.data() + i * kLanes;
    for (unsigned lane = 0; lane < lanes; ++lane) {
      Fiber& f = w.fibers[lane];
      f.warp = &w, f.block = &block, f.lane = lane, f.thread = static_cast<unsigned>(i) * kLanes + lane;
      m.stacks.start(f.context, slot * threads + f.thread, fiber_main);
    }
    wake(w, w.all);
  }
}

void run() {
  const Launch& l = m.launch;
  const unsigned resident = l.resident ? std::min(l.resident, l.grid) : l.grid;
  const size_t warps = (l.block + kLanes - 1) / kLanes;

  m.random = l.seed;
  constexpr unsigned kKeep[3] = {0, 224, 255};
  m.keep = kKeep[l.seed % 3];
  m.naps = l.seed % 4 == 3;
  m.asleep = nullptr, m.left = 0;
  m.mask = 1;
  while (m.mask < resident * warps) m.mask *= 2;
  m.order.assign(detail::random_order ? 0 : m.mask, nullptr);
  --m.mask;
  m.head = m.tail = 0;
  m.warp = nullptr;

  m.stacks.prepare(size_t(resident) * l.block);
  unsigned started = 0, ended = 0;
  for (unsigned slot = 0; slot < resident; ++slot) {
    m.blocks.push_back(std::make_unique<Block>());
    Block& block = *m.blocks.back();
    block.warps.resize(warps);
    for (Warp& w : block.warps) w.queued = false;
    block.fibers.resize(warps * kLanes);
    block.memory.resize(l.shared_bytes + 2 * kGuardBytes + 1024);
    const uintptr_t at = reinterpret_cast<uintptr_t>(block.memory.data()) + kGuardBytes;
    block.shared = block.memory.data() + kGuardBytes + ((at + 1023) / 1024 * 1024 - at);
    start_block(block, slot, started++);
  }
  while (ended < l.grid) {
    Fiber* next = pick();
    if (!next) fail("deadlock, no thread can run:" + waits());
    switch_to(next);
    if (m.error) break;
    for (unsigned slot = 0; slot < resident; ++slot) {
      Block& block = *m.blocks[slot];
      if (!block.running || block.live) continue;
      check_guards(block);
      check_states(block);
      block.running = false;
      ++ended;
      if (started < l.grid) start_block(block, slot, started++);
    }
  }
}

}  // namespace

// ---------------------------------------------------------------- the interface

namespace detail {

bool random_order = false;
uint64_t stalled = 0;
unsigned polls = 0;

void trap(const char* what) { fail(thread_name(current()) + ": " + what); }

uint32_t random() { return next_random(); }

std::unique_ptr<BlockState>& block_state(const void* key) {
  auto& states = current().block->states;
  for (auto& state : states)
    if (state.first == key) return state.second;
  states.emplace_back(key, nullptr);
  return states.back().second;
}

void maybe_preempt() {
  const unsigned one_in = options().preempt_one_in;
  if (!m.current || one_in == 0 || next_random() % one_in) return;
  wake(*m.current->warp, bit(m.current->lane));
  switch_to(pick());
}

namespace {

void publish(Warp& w, const Group& group) {
  const auto each = [&](auto result) {
    for (uint32_t lanes = group.mask; lanes; lanes &= lanes - 1) w.result[lowest(lanes)] = result(lowest(lanes));
  };
  const auto shuffle = [&](auto source) {
    each([&](unsigned lane) {
      const int segment = static_cast<int>(lane) & -w.width[lane];
      const int from = source(static_cast<int>(lane), segment, segment + w.width[lane] - 1);
      // The value of a lane outside of the mask is undefined: NaN, or -1.
      return group.mask >> from & 1 ? w.value[from] : ~uint64_t(0);
    });
  };
  const auto reduce = [&](auto join) {
    uint32_t total = static_cast<uint32_t>(w.value[lowest(group.mask)]);
    for (uint32_t lanes = group.mask & (group.mask - 1); lanes; lanes &= lanes - 1)
      total = join(total, static_cast<uint32_t>(w.value[lowest(lanes)]));
    each([&](unsigned) { return uint64_t(total); });
  };
  const auto less = [&](uint32_t a, uint32_t b) {
    return group.type == Type::i32 ? static_cast<int32_t>(a) < static_cast<int32_t>(b) : a < b;
  };

  switch (group.op) {
    case Collective::syncwarp: return;
    case Collective::shfl:
      return shuffle([&](int lane, int first, int) { return first + (w.argument[lane] & (w.width[lane] - 1)); });
    case Collective::shfl_up:
      return shuffle([&](int lane, int first, int) {
        const int from = lane - w.argument[lane];
        return from < first || from > lane ? lane : from;
      });
    case Collective::shfl_down:
      return shuffle([&](int lane, int, int last) {
        const int from = lane + w.argument[lane];
        return from > last || from < lane ? lane : from;
      });
    case Collective::shfl_xor:
      return shuffle([&](int lane, int, int last) {
        const int from = lane ^ w.argument[lane];
        return from > last || from < 0 ? lane : from;  // an earlier segment may be read, a later one not
      });
    case Collective::ballot:
    case Collective::any:
    case Collective::all: {
      uint32_t ballot = 0;
      for (uint32_t lanes = group.mask; lanes; lanes &= lanes - 1)
        if (w.value[lowest(lanes)]) ballot |= bit(lowest(lanes));
      const uint64_t result = group.op == Collective::ballot ? ballot
                              : group.op == Collective::any  ? ballot != 0
                                                             : ballot == group.mask;
      return each([&](unsigned) { return result; });
    }
    case Collective::reduce_add: return reduce([](uint32_t a, uint32_t b) { return a + b; });
    case Collective::reduce_min: return reduce([&](uint32_t a, uint32_t b) { return less(b, a) ? b : a; });
    case Collective::reduce_max: return reduce([&](uint32_t a, uint32_t b) { return less(a, b) ? b : a; });
    case Collective::reduce_and: return reduce([](uint32_t a, uint32_t b) { return a & b; });
    case Collective::reduce_or: return reduce([](uint32_t a, uint32_t b) { return a | b; });
    case Collective::reduce_xor: return reduce([](uint32_t a, uint32_t b) { return a ^ b; });
  }
}

}  // namespace

uint64_t collective(Collective op, Type type, unsigned mask, uint64_t value, int argument, int width) {
  switch_point();
  Fiber& self = current();
  Warp& w = *self.warp;
  const unsigned lane = self.lane;
  const auto called = [&] { return thread_name(self) + " called " + call_name(op, type) + " of lanes " + hex(mask); };

  if (!(mask & bit(lane))) fail(called() + ", which is not one of them");
  if (width < 1 || width > kLanes || (width & (width - 1))) fail(called() + " with width " + std::to_string(width));
  if (mask & ~w.all) fail(called() + ", but the warp has only threads " + lanes_text(w, w.all));
  if (mask & ~w.live) fail(called() + ", but threads " + lanes_text(w, mask & ~w.live) + " have ended");

  int mine = -1;
  for (int g = 0; g < w.groups; ++g) {
    const Group& other = w.group[g];
    if (other.mask == mask && other.op == op && other.type == type) {
      mine = g;
    } else if ((other.arrived & mask) && (other.mask & bit(lane))) {
      // They wait for this thread and it would wait for them. Other masks may overlap: their lanes can still come.
      fail(called() + ", but threads " + lanes_text(w, other.arrived) + " wait for it at " +
           call_name(other.op, other.type) + " of lanes " + hex(other.mask));
    }
  }
  if (mine < 0) {
    mine = w.groups++;
    w.group[mine] = Group{mask, 0, op, type};
  }
  Group& group = w.group[mine];
  group.arrived |= bit(lane);
  w.value[lane] = value;
  w.argument[lane] = argument;
  w.width[lane] = width;

  if (group.arrived == mask) {
    publish(w, group);
    group = w.group[--w.groups];
    count_stall();
    if (random_order) {
      wake(w, mask);
      switch_to(pick());
    } else if (mask != bit(lane)) {
      wake(w, mask & ~bit(lane));
    }
    // Nobody else might run while a lane loops over collectives of its own.
    if (!random_order && (m.budget == 0 || --m.budget == 0)) yield();
  } else {
    switch_to(pick());
  }
  return w.result[lane];
}

}  // namespace detail

Options& options() {
  static Options instance;
  return instance;
}

char* shared_memory() { return current().block->shared; }
size_t shared_bytes() { return m.launch.shared_bytes; }

void yield() {
  Fiber& self = current();
  count_stall();
  Warp& w = *self.warp;
  if (detail::random_order) {
    m.warp = nullptr;
    wake(w, bit(self.lane));
  } else {
    w.yielded |= bit(self.lane);  // the warp is queued: it is its turn
  }
  switch_to(pick());
}

namespace {

void meet(int id, int count, bool wait) {
  detail::switch_point();
  Fiber& self = current();
  Block& block = *self.block;
  if (id < 0 || id >= kBarriers) fail(thread_name(self) + " called barrier " + std::to_string(id));
  const int threads = static_cast<int>(m.launch.block);
  if (count < 1 || count > threads || (count % kLanes && count != threads))
    fail(thread_name(self) + " called " + barrier_name(id, count) + " in a block of " + std::to_string(threads));
  Barrier& b = block.barrier[id];
  if (b.arrived && b.count != count)
    fail(thread_name(self) + " called " + barrier_name(id, count) + ", but threads " +
         threads_text(b.waiting, block.warps.size()) + " wait at " + barrier_name(id, b.count));

  b.count = count;
  ++b.arrived;
  if (b.arrived < count) {
    if (wait) b.waiting[self.thread / kLanes] |= bit(self.lane);
    if (block.live < m.launch.block) check_barrier_reachable(block, id);
    if (wait) switch_to(pick());
    return;
  }
  detail::progress();
  b.arrived = 0;
  for (size_t i = 0; i < block.warps.size(); ++i)
    if (b.waiting[i]) wake(block.warps[i], b.waiting[i]), b.waiting[i] = 0;
  if (detail::random_order) {
    wake(*self.warp, bit(self.lane));
    switch_to(pick());
  }
}

}  // namespace

void barrier(int id, int count) { meet(id, count, true); }
void barrier_arrive(int id, int count) { meet(id, count, false); }

void launch(const Launch& launch, const std::function<void()>& kernel) {
  if (m.kernel) fail("a launch within a launch");
  if (launch.block < 1 || launch.block > kLanes * kMaxWarps)
    fail("a block of " + std::to_string(launch.block) + " threads");
  if (launch.grid == 0) fail("a grid of 0 blocks");

  m.launch = launch;
  m.kernel = &kernel;
  m.main.bottom = nullptr;
  blockDim = dim3(launch.block);
  gridDim = dim3(launch.grid);
  detail::random_order = launch.seed != 0;
  detail::stalled = 0;
  detail::polls = 0;
  struct Restore {
    ~Restore() {
      m.kernel = nullptr;
      m.current = nullptr;
      m.blocks.clear();
      m.error = nullptr;
      detail::random_order = false;
    }
  } restore;
  run();
  if (m.error) std::rethrow_exception(m.error);
}

}  // namespace simt
