// Large blocks of memory: in 2 MB pages, and kept from one call to the next.
//
// Memory fresh from the system is cleared first and, on many machines, dearer to get than to fill. So workspace, and the
// row gradients that wait for backward, go back to a pool of at most kPoolBytes for the whole process; outputs that the
// caller keeps at least ask for large pages.
#pragma once

#include <cstddef>

namespace ldreg {

constexpr size_t kPoolBytes = size_t(96) << 20;

// A hint for a block that is about to be written from end to end; nothing depends on it.
void prefer_large_pages(void* block, size_t bytes);

// A block of at least `bytes`, aligned to 64; contents are whatever they are. `bytes` becomes its true size. Throws
// std::bad_alloc.
void* take_block(size_t* bytes);
void give_block(void* block, size_t bytes);

}  // namespace ldreg
