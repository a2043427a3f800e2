// See blocks.h.
#include "blocks.h"

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#endif

namespace ldreg {
namespace {

constexpr size_t kLarge = size_t(1) << 20;  // smaller blocks are malloc's business

struct Block {
  void* data;
  size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t bytes = 0;
  Pool() { blocks.reserve(kPoolBytes / kLarge); }  // giving back may not fail
};

// Never destroyed: a worker may still give a block back while the process exits. Made when the library is loaded: a child
// that is forked while some thread makes it would wait for that thread, which it does not have.
Pool* const pool = new Pool;

// Such a child would also wait for a thread that held the lock. So whoever forks takes it first, and both sides release it.
#ifndef _WIN32
void lock_pool() { pool->mutex.lock(); }
void unlock_pool() { pool->mutex.unlock(); }
const bool usable = pthread_atfork(lock_pool, unlock_pool, unlock_pool) == 0;
#else
const bool usable = true;
#endif

}  // namespace

void prefer_large_pages(void* block, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096;  // what madvise wants its range aligned to
  const uintptr_t from = (reinterpret_cast<uintptr_t>(block) + page - 1) / page * page;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(block) + bytes) / page * page;
  if (bytes >= (size_t(4) << 20)) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)block, (void)bytes;
#endif
}

void* take_block(size_t* bytes) {
  if (usable && *bytes >= kLarge) {
    Pool& p = *pool;
    std::lock_guard<std::mutex> lock(p.mutex);
    size_t best = p.blocks.size();
    for (size_t b = 0; b < p.blocks.size(); ++b)
      if (p.blocks[b].bytes >= *bytes && (best == p.blocks.size() || p.blocks[b].bytes < p.blocks[best].bytes)) best = b;
    if (best < p.blocks.size() && p.blocks[best].bytes <= 2 * *bytes) {
      const Block found = p.blocks[best];
      p.blocks.erase(p.blocks.begin() + best);
      p.bytes -= found.bytes;
      *bytes = found.bytes;
      return found.data;
    }
  }
  void* fresh = nullptr;
  if (posix_memalign(&fresh, 64, *bytes) != 0) throw std::bad_alloc();
  prefer_large_pages(fresh, *bytes);
  return fresh;
}

void give_block(void* block, size_t bytes) {
  if (usable && bytes >= kLarge && bytes <= kPoolBytes) {
    Pool& p = *pool;
    std::lock_guard<std::mutex> lock(p.mutex);
    while (p.bytes + bytes > kPoolBytes) {  // the oldest make room
      std::free(p.blocks.front().data);
      p.bytes -= p.blocks.front().bytes;
      p.blocks.erase(p.blocks.begin());
    }
    p.blocks.push_back({block, bytes});
    p.bytes += bytes;
    return;
  }
  std::free(block);
}

}  // namespace ldreg
