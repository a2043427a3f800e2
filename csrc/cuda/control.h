// What a block knows of where it is. In shared memory, so that no stage has to keep it in registers.
#pragma once

#include "rounds.h"
#include "tile.h"

namespace ldreg::cuda {

struct Control {
  Cursor at;
  TileAt tile;
  RoundAt round;
  unsigned ticket;
  int rows;    // that every pair is computed for
  bool last;   // the block that finished last
};
static_assert(sizeof(Control) <= kArgumentsAt && kArgumentsAt + sizeof(Arguments) <= kControlBytes);

}  // namespace ldreg::cuda
