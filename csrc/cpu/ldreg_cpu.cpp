// See ldreg_cpu.h. The forms themselves are in lid_math.h.
#include "ldreg_cpu.h"

#include "../lid_math.h"
#include "float_mode.h"

namespace ldreg {

template <class Real>
void ldreg_loss(const Real* lid, const uint8_t* degenerate, int64_t rows, int form_id, double target, Reduction reduction,
                Real* value, Real* coeff) {
  const DefaultFloats floats;
  const Form form = static_cast<Form>(form_id);
  const double goal = form == Form::target ? std::log(target) : 0;
  double total = 0;
  int64_t counted = 0;
  for (int64_t i = 0; i < rows; ++i) {
    double v = 0, slope = 0;
    if (!degenerate[i]) {
      loss_row(form, std::log(static_cast<double>(lid[i])), goal, &v, &slope);
      ++counted;
    }
    total += v;
    coeff[i] = static_cast<Real>(slope);
    if (reduction == Reduction::none) value[i] = static_cast<Real>(v);
  }
  if (reduction == Reduction::none) return;
  const double share = counted > 0 ? 1.0 / counted : 0;
  double factor = reduction == Reduction::mean ? share : 1;
  if (form == Form::l2) {
    const double root = std::sqrt(total * share);
    *value = static_cast<Real>(-root);
    factor = root == 0 ? 0 : -share / (2 * root);  // the root has no derivative at 0: 0 there
  } else {
    *value = static_cast<Real>(total * factor);
  }
  for (int64_t i = 0; i < rows; ++i) coeff[i] = static_cast<Real>(coeff[i] * factor);
}

template void ldreg_loss(const float*, const uint8_t*, int64_t, int, double, Reduction, float*, float*);
template void ldreg_loss(const double*, const uint8_t*, int64_t, int, double, Reduction, double*, double*);

}  // namespace ldreg
