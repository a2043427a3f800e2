// The loss on top of the per-row estimates: value and its derivative by every ln LID. Plain C++, O(B).
#pragma once

#include <cstdint>

namespace ldreg {

enum class Reduction : int { mean, sum, none };

// R = reduction_i phi(ln LID_i) over the rows that are not degenerate, in double, in row order.
//   lid, degenerate [B];  value [1] ([B] with Reduction::none);  coeff [B] = d value / d ln LID_i.
template <class Real>
void ldreg_loss(const Real* lid, const uint8_t* degenerate, int64_t rows, int form, double target, Reduction reduction,
                Real* value, Real* coeff);

}  // namespace ldreg
