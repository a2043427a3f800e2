// The loss over all rows and its derivative by every ln LID, by the last block to finish.
//
// Contract: formulas are lid_math.h's; rows are added up in double in one order. Degenerate rows are left out of the mean.
#pragma once

#include "load.h"
#include "arguments.h"

namespace ldreg::cuda {

enum class Reduction : int { mean, sum, none };

template <class Real>
__device__ void write_loss(const Arguments& a, double* scratch) {
  const Form form = Form(a.r.form);
  const Reduction reduction = Reduction(a.r.reduction);
  const Real* lid = static_cast<const Real*>(a.o.lid);
  Real* values = static_cast<Real*>(a.o.value);
  Real* coeff = static_cast<Real*>(a.o.coeff);
  double total = 0, counted = 0;
  for (int i = thread_id(); i < a.p.B; i += blockDim.x) {
    double value = 0, slope = 0;
    if (!a.o.degenerate[i]) {
      loss_row(form, log(double(lid[i])), a.r.goal, &value, &slope);
      counted += 1;
    }
    total += value;
    if (reduction == Reduction::none) values[i] = Real(value);
    coeff[i] = Real(slope);
  }
  total = warp_sum(total), counted = warp_sum(counted);
  if (lane_id() == 0) scratch[2 * warp_id()] = total, scratch[2 * warp_id() + 1] = counted;
  __syncthreads();
  total = counted = 0;
  for (int w = 0; w < int(blockDim.x) / kWarp; ++w) total += scratch[2 * w], counted += scratch[2 * w + 1];
  const double n = counted > 0 ? counted : 1;
  double share = reduction == Reduction::mean ? 1 / n : 1;
  if (form == Form::l2) {
    const double root = sqrt(total / n);
    total = -root, share = root == 0 ? 0 : -0.5 / (root * n);
  } else {
    total *= share;
  }
  if (reduction == Reduction::none) return;
  if (thread_id() == 0) *values = Real(total);
  for (int i = thread_id(); i < a.p.B; i += blockDim.x) coeff[i] = Real(double(coeff[i]) * share);
}

}  // namespace ldreg::cuda
