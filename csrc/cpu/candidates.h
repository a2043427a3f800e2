// Which references may be among a query's k nearest: threshold, append, compact, with bounds that hold by construction.
//
// With rounded rows x^, y^ the tile gives q = |x^|^2 + |y^|^2 - 2 x^.y^, off by at most E = gamma (|x^|^2 + |y^|^2) from
// |x^ - y^|^2, and |x^ - y^| is within r_x + r_y of the true distance (r = residual of rounding). Hence
//   lower bound   d >= sqrt(q - E) - r_x - r_y        upper bound   d <= sqrt(q + E) + r_x + r_y.
// T, the upper bound of the k-th smallest q so far, bounds the k-th distance; a pair whose lower bound exceeds T cannot
// be a neighbour and is not kept. So every neighbour is among the candidates: there is no certificate left to fail. What
// can fail is the room for candidates (`overflowed`): such a row is searched again at higher precision.
// precision="fast" is the same with all bounds 0 and a few candidates more than k.
#pragma once

#include "tile.h"
#include "../topk.h"

namespace ldreg {
inline namespace LDREG_ISA {

constexpr float kNever = 1e30f;    // larger than any key: the tile's unit has entries near 1
constexpr float kTiny = 1e-30f;    // products below 2^-126 are flushed
constexpr int kFastExtra = 16;

// Per-row bounds of one feature matrix in the tile's unit.
struct Bounds {
  Buffer<float> norm;      // |x^|^2
  Buffer<float> residual;  // r_x
};

class Candidates {
 public:
  // k neighbours of `queries` rows; gamma is the relative rounding bound of a key.
  void start(int queries, int k, int64_t references, float gamma, bool exact) {
    lanes_ = (queries + kPanel - 1) / kPanel * kPanel;
    gamma_ = gamma;
    keep_ = exact ? k : int(std::min<int64_t>(k + kFastExtra, references));
    room_ = 2 * keep_ + 512 + int(std::min<int64_t>(references / 8, 2048));
    key_.reserve(int64_t(lanes_) * room_), index_.reserve(int64_t(lanes_) * room_);
    for (Buffer<float>* b : {&norm_, &residual_, &reach_, &limit_}) b->reserve(lanes_);
    for (Buffer<int>* b : {&count_, &trigger_, &self_}) b->reserve(lanes_);
    for (int i = 0; i < lanes_; ++i) close(i);
  }

  // Query lane i is a real one; `self` is its own row among the references, or -1.
  void open(int i, float norm, float residual, int64_t self) {
    norm_[i] = norm, residual_[i] = residual, self_[i] = int(self);
    count_[i] = 0, trigger_[i] = std::min(room_, keep_ + 192);
    set_threshold(i, 1e9f);
  }

  // Offer a chunk: products[panel][row][lane] of references first..first+rows; those that may be neighbours are appended.
  void offer(const float* products, int rows, int padded_rows, int64_t first, const Bounds& y) {
    for (int p = 0; p < lanes_ / kPanel; ++p) {
      const int lane = p * kPanel;
      for (int r = 0; r < rows; ++r) {
        const float* dot = products + (int64_t(p) * padded_rows + r) * kPanel;
        const float norm = y.norm[first + r], residual = y.residual[first + r];
        const float bias = norm * (1 - gamma_) - residual * residual;
        for (int v = 0; v < kVectors; ++v) {
          const int at = lane + 16 * v;
          const f32x16 key = bias - 2 * load(dot + 16 * v) - residual * load(reach_.get() + at);
          for (unsigned hit = mask_less_equal(key, load(limit_.get() + at)); hit; hit &= hit - 1) {
            const int bit = __builtin_ctz(hit);
            append(at + bit, norm - 2 * dot[16 * v + bit], int(first) + r, y);
          }
        }
      }
    }
  }

  bool overflowed(int i) const { return count_[i] < 0; }

  // The candidates of lane i with lower bounds on their distances, in the tile's unit. Returns how many.
  int finish(int i, const Bounds& y, float* lower, int* index) {
    compact(i, y);
    const int n = count_[i];
    const int64_t base = int64_t(i) * room_;
    for (int c = 0; c < n; ++c) {
      const int j = index_[base + c];
      const float q = norm_[i] * (1 - gamma_) + key_[base + c] - gamma_ * y.norm[j] - kTiny;
      lower[c] = (q > 0 ? std::sqrt(q) : 0) - residual_[i] - y.residual[j];
      index[c] = j;
    }
    return n;
  }
  int room() const { return room_; }

 private:
  void append(int i, float key, int j, const Bounds& y) {
    if (j == self_[i]) return;
    const int64_t at = int64_t(i) * room_ + count_[i]++;
    key_[at] = key, index_[at] = j;
    if (count_[i] < trigger_[i]) return;
    compact(i, y);
    if (count_[i] > room_ - 64) {
      close(i);
      count_[i] = -1;
    } else {
      trigger_[i] = std::min(room_, std::max(2 * count_[i], count_[i] + 192));
    }
  }

  // No reference passes the filter of a closed lane.
  void close(int i) {
    reach_[i] = 0, limit_[i] = -kNever, count_[i] = 0;
    norm_[i] = residual_[i] = 0, self_[i] = -1;
  }

  // A reference passes if its lower bound is at most t:  q - E <= (t + r_x + r_y)^2, sorted into what depends on the
  // query (limit, reach) and on the reference (bias, residual in `offer`).
  void set_threshold(int i, float t) {
    const float s = t + residual_[i];
    reach_[i] = 2 * s;
    limit_[i] = s * s - norm_[i] * (1 - gamma_) + kTiny;
  }

  // Lower the threshold to the upper bound of the k-th smallest key, then drop what cannot be a neighbour any more.
  void compact(int i, const Bounds& y) {
    float* key = key_.get() + int64_t(i) * room_;
    int* index = index_.get() + int64_t(i) * room_;
    const int n = count_[i];
    if (n <= keep_) return;
    const float pivot = at_least(key, n, keep_);
    float norm = 0, residual = 0;  // the largest among those counted by the pivot
    for (int c = 0; c < n; ++c) {
      if (key[c] > pivot) continue;
      norm = std::max(norm, y.norm[index[c]]), residual = std::max(residual, y.residual[index[c]]);
    }
    const float q = norm_[i] + pivot + gamma_ * (norm_[i] + norm) + kTiny;
    set_threshold(i, std::sqrt(std::max(q, 0.0f)) * (1 + 0x1p-22f) + residual_[i] + residual);
    int kept = 0;
    for (int c = 0; c < n; ++c) {
      const int j = index[c];
      const float k = key[c], r = y.residual[j];
      key[kept] = k, index[kept] = j;
      kept += k - gamma_ * y.norm[j] - r * r - r * reach_[i] <= limit_[i];
    }
    count_[i] = kept;
  }

  // A value that at least k of n keys do not exceed, and hardly more than k: bisection by counting, which takes a few
  // vector instructions a round where a selection would mispredict a branch a key.
  static float at_least(const float* key, int n, int k) {
    f32x16 low = {}, high = {};
    low += kNever, high -= kNever;
    for (int c = 0; c < n; c += 16) {
      const f32x16 v = block(key, c, n, key[0]);
      low = v < low ? v : low, high = v > high ? v : high;
    }
    float lo = low[0], hi = high[0];
    for (int l = 1; l < 16; ++l) lo = std::min(lo, low[l]), hi = std::max(hi, high[l]);
    for (int round = 0; round < 16; ++round) {
      const float mid = lo + (hi - lo) * 0.5f;
      i32x16 below = {};
      for (int c = 0; c < n; c += 16) below -= block(key, c, n, kNever) <= mid;
      int count = 0;
      for (int l = 0; l < 16; ++l) count += below[l];
      if (count >= k) hi = mid;
      else lo = mid;
      if (count == k) break;
    }
    return hi;
  }

  // key[c..c+16), with `filler` from n on.
  static f32x16 block(const float* key, int c, int n, float filler) {
    if (c + 16 <= n) return load(key + c);
    f32x16 v = {};
    v += filler;
    for (int l = 0; c + l < n; ++l) v[l] = key[c + l];
    return v;
  }

  int lanes_ = 0, keep_ = 0, room_ = 0;
  float gamma_ = 0;
  Buffer<float> norm_, residual_, reach_, limit_, key_;
  Buffer<int> index_, count_, trigger_, self_;
};

}  // namespace LDREG_ISA
}  // namespace ldreg
