// See large_pages.h.
#include "large_pages.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ldreg {

void prefer_large_pages(void* block, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096;  // what madvise wants its range aligned to
  const uintptr_t from = (reinterpret_cast<uintptr_t>(block) + page - 1) / page * page;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(block) + bytes) / page * page;
  if (bytes >= (4u << 20)) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)block, (void)bytes;
#endif
}

}  // namespace ldreg
