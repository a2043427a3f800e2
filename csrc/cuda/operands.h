// Before the tiles: the scale of the batch, a centre, and rows packed into float16 operands.
//
// Contract: rows are packed as fp16(scale * (v - centre)), scale a power of two. Distances do not change when everything
// is moved, so any centre and any scale are correct; good ones are fast. What rounding did to a row is measured, not
// estimated: residual >= |v' - fp16(v')|, so by the triangle inequality the distance of two packed rows is within
// residual_x + residual_y of the true one. float16 has three bits more than bfloat16 at the same tensor-core rate. A column
// is centred only if its mean exceeds its spread, so that low-bit features near the origin stay exact.
#pragma once

#include "load.h"
#include "schedule.h"

namespace ldreg::cuda {

constexpr int kSample = 64;            // references looked at for centre and scale
constexpr int kCentreBytes = (kSample + 4) * kCentreColumns * int(sizeof(float));  // of shared memory
constexpr float kPackedMax = 60000;    // beyond it features are clamped, and the residual says by how much
constexpr float kNotFinite = 1e37f;    // norm of a row with NaN or Inf
constexpr float kLost = 1e18f;         // residual of a row that float16 cannot follow at all

constexpr int kAtOnce = 16;            // features of a row that a lane has under way

// The reference met at `position`: steps of the golden ratio spread any order that references are in. Sorted by class,
// those of a query's own class would come all in one step, too many for its list.
__device__ inline int reference_at(const Arguments& a, int position) {
  return int(int64_t(position) * a.plan.stride % a.p.N);
}

// The query whose list is at `slot` of the panel.
__device__ inline int query_of(const Arguments& a, int panel, int slot) {
  return a.plan.symmetric ? reference_at(a, slot) : panel * a.plan.panel + slot;
}

// The row of y that a query is, or -1: left out by index, never by distance.
__device__ inline int own_row(const Problem& p, int query) {
  if (p.own == OwnKind::none) return -1;
  const int64_t j = p.own == OwnKind::map ? p.own_map[query] : query + p.own_offset;
  return j >= 0 && j < p.N ? int(j) : -1;
}

template <class T>
__device__ inline const T* row_of(const void* data, int64_t stride, int row) {
  return static_cast<const T*>(data) + row * stride;
}

// state[kLargest]: bits of the largest finite |feature| of kScanRows rows of x or y.
template <class T>
__device__ __forceinline__ void scan_rows(int job) {
  const Arguments& a = arguments();
  using Real = RealOf<T>;
  const int of_x = ceil_div(a.p.B, kScanRows);
  const bool x = job < of_x;
  const int first = (x ? job : job - of_x) * kScanRows, last = smaller(first + kScanRows, x ? a.p.B : a.p.N);
  Real most = 0;
  for (int i = first + warp_id(); i < last; i += blockDim.x / kWarp) {
    const T* row = x ? row_of<T>(a.p.x, a.p.x_stride, i) : row_of<T>(a.p.y, a.p.y_stride, i);
    for (int c = 4 * lane_id(); c < a.p.D; c += kAtOnce * kWarp) {
      Real v[kAtOnce];
      load_groups(row, c, 4 * kWarp, a.p.D, a.p.aligned, v);
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const Real size = v[n] < 0 ? -v[n] : v[n];
        if (size <= Real(sizeof(Real) == 8 ? 1.7976931348623157e308 : 3.4028234663852886e38) && size > most) most = size;
      }
    }
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const Real other = __shfl_xor_sync(kAllLanes, most, lanes);
    if (other > most) most = other;
  }
  if (lane_id() == 0) atomicMax(reinterpret_cast<unsigned long long*>(a.s.state + kLargestLow), bits_of(most));
}

// centre of kCentreColumns columns, from kSample references; state[kExtent], [kShifted]: the largest |v - centre| and
// |centre|. Each column's smallest and largest value are left out, so that one exploding row moves neither.
template <class T>
__device__ __forceinline__ void centre_columns(int job, char* memory) {
  const Arguments& a = arguments();
  constexpr int kGroups = 4, kEach = kSample / kGroups;
  float* shared = reinterpret_cast<float*>(memory);        // [kGroups][kCentreColumns]
  float* sample = shared + kGroups * kCentreColumns;       // [kSample][kCentreColumns]
  for (int i = thread_id(); i < kSample * kCentreColumns; i += blockDim.x) {
    const int row = int(int64_t(i / kCentreColumns) * a.p.N / kSample), c = job * kCentreColumns + i % kCentreColumns;
    const float v = c < a.p.D ? float(widen(row_of<T>(a.p.y, a.p.y_stride, row)[c])) : 0.0f;
    sample[i] = fabsf(v) < INFINITY ? v : 0.0f;
  }
  __syncthreads();
  const int column = thread_id() % kCentreColumns, group = thread_id() / kCentreColumns;
  const int c = job * kCentreColumns + column;
  const float* v = sample + (group < kGroups ? group * kEach * kCentreColumns : 0) + column;  // every kCentreColumns-th
  const auto at = [&](int i) { return v[i * kCentreColumns]; };
  // All threads of a column combine what its four groups found.
  auto combine = [&](float mine, auto&& join) {
    if (group < kGroups) shared[group * kCentreColumns + column] = mine;
    __syncthreads();
    float all = shared[column];
    for (int g = 1; g < kGroups; ++g) all = join(all, shared[g * kCentreColumns + column]);
    __syncthreads();
    return all;
  };
  auto least = [](float s, float t) { return fminf(s, t); };
  auto most = [](float s, float t) { return fmaxf(s, t); };
  auto sum = [](float s, float t) { return s + t; };
  float low = v[0], high = v[0];
  for (int i = 1; i < kEach; ++i) low = fminf(low, at(i)), high = fmaxf(high, at(i));
  low = combine(low, least), high = combine(high, most);
  float n = 0, mean = 0, spread = 0;
  for (int i = 0; i < kEach; ++i) n += at(i) > low && at(i) < high;
  n = fmaxf(combine(n, sum), 1.0f);
  for (int i = 0; i < kEach; ++i) mean += at(i) > low && at(i) < high ? at(i) / n : 0.0f;
  mean = combine(mean, sum);
  for (int i = 0; i < kEach; ++i) spread += at(i) > low && at(i) < high ? fabsf(at(i) - mean) / n : 0.0f;
  spread = combine(spread, sum);
  // All equal: every value is the smallest, and the centre. Eight bits of centre keep low-bit features low-bit.
  mean = __bfloat162float(__float2bfloat16_rn(low == high ? low : mean));
  const float centre = fabsf(mean) > spread && fabsf(mean) < INFINITY ? mean : 0.0f;
  float extent = 0, everything = 0;
  for (int i = 0; i < kEach; ++i) {
    const float offset = fabsf(at(i) - centre);
    everything = fmaxf(everything, offset);
    if (at(i) > low && at(i) < high) extent = fmaxf(extent, offset);
  }
  extent = combine(extent, most), everything = combine(everything, most);
  if (c >= a.p.D || group != 0) return;
  a.s.centre[c] = centre;
  // Two values only (features of {0, 1}, say): nothing is between them. atomicMax, because the bits of floats >= 0 are
  // ordered like the floats.
  atomicMax(a.s.state + kExtent, unsigned(__float_as_int(extent > 0 ? extent : everything)));
  atomicMax(a.s.state + kShifted, unsigned(__float_as_int(fabsf(centre))));
}

// kPackRows rows from `first` on, of queries or of the references that end at `end`, into the packed matrix, with norms
// and residuals. Whoever packs the last one puts zeros behind it, up to a whole block: tiles multiply those rows, too, and
// what a product of left-over memory is would be anybody's guess.
template <class T>
__device__ __forceinline__ void pack_rows(bool queries, int first, int end, int panel_top, int64_t base) {
  const Arguments& a = arguments();
  const int last = smaller(first + kPackRows, end);
  // Features then reach 2^6, which leaves float16 ten binary digits above and 20 below.
  const float scale = power_of_two(6 - (int(a.s.state[kExtent] >> 23) - 127)).scale;
  const bool centred = a.s.state[kShifted] != 0;
  for (int i = first + warp_id(); i < last; i += blockDim.x / kWarp) {
    const T* row = queries ? row_of<T>(a.p.x, a.p.x_stride, panel_top + i)
                           : row_of<T>(a.p.y, a.p.y_stride, reference_at(a, i));
    __half* packed = (queries ? a.s.x : a.s.y) + (i + base) * a.plan.columns;
    float rounded = 0, lost = 0, square = 0;
    bool broken = false;
    for (int first_column = 4 * lane_id(); first_column < a.plan.columns; first_column += kAtOnce * kWarp) {
      RealOf<T> wide[kAtOnce];
      load_groups(row, first_column, 4 * kWarp, a.p.D, a.p.aligned, wide);
#pragma unroll
      for (int group = 0; group < kAtOnce / 4; ++group) {
        const int c = first_column + group * 4 * kWarp;
        if (c >= a.plan.columns) break;
        const Four<float> centre = *global(reinterpret_cast<const Four<float>*>(a.s.centre + c));
        Four<__half> out;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float v = float(wide[4 * group + n]);
          const bool finite = fabsf(v) < INFINITY;
          broken |= !finite;
          v = finite && c + n < a.p.D ? (v - centre.v[n]) * scale : 0.0f;
          out.v[n] = __float2half_rn(fminf(fmaxf(v, -kPackedMax), kPackedMax));
          const float o = __half2float(out.v[n]);
          rounded += o * o, lost += (v - o) * (v - o), square += v * v;
        }
        *reinterpret_cast<Four<__half>*>(packed + c) = out;
      }
    }
    rounded = warp_sum(rounded), lost = warp_sum(lost), square = warp_sum(square);
    broken = __any_sync(kAllLanes, broken);
    // v - centre itself is rounded, to 2^-24; squares below 1e-38 vanish from these sums, hence the constant.
    const float bound = sqrtf(lost) * 1.001f + sqrtf(square) * 1.2e-7f + 1e-17f;
    if (lane_id() != 0) continue;
    (queries ? a.s.x_packed : a.s.y_packed)[i] = {broken ? kNotFinite : rounded,
                                                  lost == 0 && !centred ? 0.0f : bound < kLost ? bound : kLost};
  }
  if (last == end) {
    __half* packed = (queries ? a.s.x : a.s.y) + (last + base) * a.plan.columns;
    const int missing = (ceil_div(end, kBlock) * kBlock - end) * a.plan.columns;
    for (int c = 4 * thread_id(); c < missing; c += 4 * blockDim.x) *reinterpret_cast<Four<__half>*>(packed + c) = {};
  }
  publish_to_copies();
}

}  // namespace ldreg::cuda
