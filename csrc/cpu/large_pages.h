// Ask for 2 MB pages behind a large block that is about to be written from end to end: taking it 4 KB at a time costs more
// than writing it. A hint; nothing depends on it.
#pragma once

#include <cstddef>

namespace ldreg {

void prefer_large_pages(void* block, size_t bytes);

}  // namespace ldreg
