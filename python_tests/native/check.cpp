// The CPU kernels without Python: neighbours, LIDs and gradients, and sums over pairs, against plain float64 loops, on
// generated problems.
//
// For instruction sets that the tests' machine lacks: cross-compiled and run under an emulator, or with vectors of
// another width. LDREG_CPU_ISA names the set, as in the package. Prints the set and how many problems passed; the first
// mismatch ends it with a line that says where. python_tests/kernels/test_native.py builds and runs it; the tolerances
// and their reasons are those of python_tests/tolerances.py.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "cpu/choice.h"
#include "cpu/parallel.h"

using namespace ldreg;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
enum Estimator { mom = 0, mle = 2 };  // as in csrc/lid_math.h

int checked = 0;
std::string place;  // the problem at hand

void require(bool holds, const char* what, double got = 0, double wanted = 0) {
  if (holds) return;
  std::printf("%s: %s: got %.17g, wanted %.17g\n", place.c_str(), what, got, wanted);
  std::exit(1);
}

struct Random {  // the same numbers with every compiler
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(state >> 33);
  }
  int below(int n) { return int(next() % uint32_t(n)); }
  double normal() {  // nearly
    double s = 0;
    for (int i = 0; i < 12; ++i) s += next() / double(1u << 31);
    return s - 6;
  }
};

// ---- features of every dtype, as bytes and as the numbers they stand for

int size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

double half_value(uint16_t h) {
  const double sign = h >> 15 ? -1 : 1;
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 31) return mantissa ? std::nan("") : sign * kInfinity;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

double bf16_value(uint16_t h) {
  const uint32_t bits = uint32_t(h) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

uint16_t half_bits(double v) {  // truncated: any value of the dtype will do
  if (v == 0) return 0;
  const int exponent = std::max(std::ilogb(v), -14);
  const int mantissa = int(std::ldexp(std::fabs(v), 10 - exponent));
  return uint16_t((v < 0) << 15) | uint16_t(mantissa < 1024 ? mantissa : (exponent + 14) * 1024 + mantissa);
}

struct Table {
  DType dtype;
  int rows, columns;
  std::vector<unsigned char> bytes;
  std::vector<double> values;

  Table(DType t, int r, int c) : dtype(t), rows(r), columns(c), bytes(size_t(r) * c * size_of(t)), values(size_t(r) * c) {}
  void set(int64_t i, double v) {
    unsigned char* at = bytes.data() + i * size_of(dtype);
    if (dtype == DType::f64) std::memcpy(at, &v, 8), values[i] = v;
    if (dtype == DType::f32) {
      const float f = float(v);
      std::memcpy(at, &f, 4), values[i] = f;
    }
    if (dtype == DType::f16) set_bits(i, half_bits(v));
    if (dtype == DType::bf16) {
      const float f = float(v);
      uint32_t word;
      std::memcpy(&word, &f, 4);
      set_bits(i, uint16_t(word >> 16));
    }
  }
  void set_bits(int64_t i, uint16_t bits) {
    std::memcpy(bytes.data() + i * 2, &bits, 2);
    values[i] = dtype == DType::f16 ? half_value(bits) : bf16_value(bits);
  }
  const double* row(int i) const { return values.data() + int64_t(i) * columns; }
  Matrix matrix() const { return {bytes.data(), rows, columns}; }
};

double distance(const double* a, const double* b, int n) {
  double s = 0;
  for (int c = 0; c < n; ++c) s += (a[c] - b[c]) * (a[c] - b[c]);
  return std::sqrt(s);
}

bool finite(const double* a, int n) {
  return std::all_of(a, a + n, [](double v) { return std::isfinite(v); });
}

// ---- one problem

struct Task {
  const Table& x;
  const Table* y;  // null: x itself
  std::vector<int64_t> self;
  int k;
  bool drop_smallest = false, integers = false;
  int threads = 2;

  const Table& references() const { return y ? *y : x; }
  bool wide() const { return x.dtype == DType::f64; }
  double read(const std::vector<unsigned char>& from, int64_t i) const {
    if (wide()) {
      double v;
      std::memcpy(&v, from.data() + 8 * i, 8);
      return v;
    }
    float v;
    std::memcpy(&v, from.data() + 4 * i, 4);
    return v;
  }
  Problem problem() const {
    return {x.matrix(), references().matrix(), x.columns, x.dtype, !y, {self.data(), 0}, k, true, drop_smallest, threads};
  }
  std::vector<unsigned char> poisoned(int64_t n) const { return std::vector<unsigned char>(n * (wide() ? 8 : 4), 0xa5); }
};

// The distances of row i to every reference it may have, smallest first; NaN or Inf anywhere: infinite.
std::vector<std::pair<double, int>> sorted_distances(const Task& t, int i) {
  std::vector<std::pair<double, int>> all;
  const Table& y = t.references();
  for (int j = 0; j < y.rows; ++j) {
    if (j == t.self[i]) continue;
    const bool real = finite(t.x.row(i), t.x.columns) && finite(y.row(j), t.x.columns);
    all.push_back({real ? distance(t.x.row(i), y.row(j), t.x.columns) : kInfinity, j});
  }
  std::sort(all.begin(), all.end());
  if (t.drop_smallest) all.erase(all.begin());
  return all;
}

// sorted_distances of every third row, or empty: plain loops are most of the time, and lanes come in powers of two.
using Expected = std::vector<std::vector<std::pair<double, int>>>;

void check_neighbours(const Kernels& kernels, const Task& t, const Expected& all) {
  const double tolerance = t.wide() ? 1e-12 : 1e-6;
  auto distances = t.poisoned(int64_t(t.x.rows) * t.k);
  std::vector<int64_t> indices(int64_t(t.x.rows) * t.k, -7);
  Control control;
  kernels.knn(t.problem(), {distances.data(), indices.data()}, control);
  for (int i = 0; i < t.x.rows; ++i) {
    const auto& expected = all[i];
    if (expected.empty()) continue;
    std::vector<int64_t> mine(indices.begin() + int64_t(i) * t.k, indices.begin() + int64_t(i + 1) * t.k);
    for (int j = 0; j < t.k; ++j) {
      const double got = t.read(distances, int64_t(i) * t.k + j), wanted = expected[j].first;
      require(mine[j] >= 0 && mine[j] < t.references().rows && mine[j] != t.self[i], "no neighbour", double(mine[j]));
      if (wanted == kInfinity) {
        require(std::isnan(got), "a distance to NaN or Inf", got, std::nan(""));
        continue;
      }
      if (t.integers) {  // exactly the float nearest to the root
        require(got == (t.wide() ? wanted : double(float(wanted))), "an integer distance", got, wanted);
      } else {
        require(std::fabs(got - wanted) <= tolerance * wanted, "distance", got, wanted);
      }
      const double own = distance(t.x.row(i), t.references().row(int(mine[j])), t.x.columns);
      require(std::fabs(got - own) <= tolerance * own, "distance of the row returned", got, own);
    }
    std::sort(mine.begin(), mine.end());
    require(std::adjacent_find(mine.begin(), mine.end()) == mine.end(), "a neighbour twice", i);
  }
}

// LID by the textbook, and by how much ln LID changes with each distance.
double lid_of(Estimator e, const std::vector<double>& d, std::vector<double>* slope) {
  const int k = int(d.size());
  const double far = d[k - 1];
  slope->assign(k, 0);
  if (e == mom) {
    double m = 0;
    for (int j = 0; j < k - 1; ++j) m += d[j] / (k - 1);
    for (int j = 0; j < k - 1; ++j) (*slope)[j] = far / ((k - 1) * m * (far - m));
    (*slope)[k - 1] = -1 / (far - m);
    return m / (far - m);
  }
  double s = 0, total = 0;
  for (int j = 0; j < k - 1; ++j) s -= std::log(d[j] / far + 1e-4);
  for (int j = 0; j < k - 1; ++j) {
    (*slope)[j] = 1 / (s * (d[j] + 1e-4 * far));
    total += d[j] / (d[j] + 1e-4 * far);
  }
  (*slope)[k - 1] = -total / (s * far);
  return k / s;
}

void check_lid(const Kernels& kernels, const Task& t, const Expected& all, Estimator estimator) {
  const int rows = t.x.rows, columns = t.x.columns;
  const int tracked_k[2] = {std::max(3, t.k / 3), t.k};
  const Track tracks[2] = {{mle, tracked_k[0]}, {mom, tracked_k[1]}};
  auto lid = t.poisoned(rows), tracked = t.poisoned(2 * rows), grad = t.poisoned(int64_t(rows) * columns);
  std::vector<uint8_t> degenerate(rows, 99);
  Control control;
  kernels.lid(t.problem(), {estimator, t.k, tracks, 2}, {lid.data(), degenerate.data(), tracked.data(), grad.data()},
              control);
  for (int i = 0; i < rows; ++i) {
    const auto& expected = all[i];
    if (expected.empty()) continue;
    std::vector<double> d, slope, near_slope;
    for (int j = 0; j < t.k; ++j) d.push_back(expected[j].first);
    if (d[t.k - 1] == kInfinity) {
      require(std::isnan(t.read(lid, i)), "LID of a row with NaN or Inf", t.read(lid, i));
      continue;
    }
    const auto bound = [&](double l) { return t.wide() ? 1e-11 * (1 + l) * (1 + l) : std::max(4e-6, 2e-7 * l) * (1 + l); };
    const double wanted = lid_of(estimator, d, &slope);
    if (!(wanted < 1e5)) continue;  // degenerate, or not resolved
    require(degenerate[i] == (wanted == 0), "degenerate", degenerate[i], wanted == 0);
    if (wanted == 0) continue;
    require(std::fabs(t.read(lid, i) - wanted) <= bound(wanted), "LID", t.read(lid, i), wanted);
    for (int s = 0; s < 2; ++s) {
      const std::vector<double> near(d.begin(), d.begin() + tracked_k[s]);
      const double other = lid_of(Estimator(tracks[s].estimator), near, &near_slope), got = t.read(tracked, s * rows + i);
      if (other > 0 && other < 1e5) require(std::fabs(got - other) <= bound(other), "tracked LID", got, other);
    }
    // At a tie (as far as Real can tell) either row may be the k-th.
    if (int(expected.size()) > t.k && expected[t.k].first <= d[t.k - 1] * (1 + 2e-6)) continue;
    if (t.k > 1 && d[t.k - 2] >= d[t.k - 1] * (1 - 2e-6)) continue;
    std::vector<double> g(columns, 0.0);
    for (int j = 0; j < t.k; ++j)
      for (int c = 0; d[j] > 0 && c < columns; ++c)
        g[c] += slope[j] * (t.x.row(i)[c] - t.references().row(expected[j].second)[c]) / d[j];
    double size = 0, off = 0;  // relative to the terms, each slope times a unit vector: in one dimension they cancel
    for (double s : slope) size += std::fabs(s);
    for (int c = 0; c < columns; ++c) off += std::pow(t.read(grad, int64_t(i) * columns + c) - g[c], 2);
    const double rounding = t.wide() ? 1e-15 : 6e-8;  // of k additions in a row, and of the distances behind the slopes
    const double limit = rounding * (16 + t.k / 2 + 2 * wanted);
    require(std::sqrt(off) <= limit * size, "gradient", std::sqrt(off), size);
  }
}

const char* const kNames[] = {"float32", "float64", "bfloat16", "float16"};

void check(const Kernels& kernels, const Task& t, const char* kind, bool lids) {
  char text[200];
  std::snprintf(text, sizeof text, "%s %s, %d of %d rows, %d columns, k %d%s", kind, kNames[int(t.x.dtype)], t.x.rows,
                t.references().rows, t.x.columns, t.k, t.drop_smallest ? ", smallest dropped" : "");
  place = text;
  Expected all(t.x.rows);
  for (int i = t.x.rows > 3 ? checked % 3 : 0; i < t.x.rows; i += 3) all[i] = sorted_distances(t, i);
  check_neighbours(kernels, t, all);
  if (lids && t.k >= 3) check_lid(kernels, t, all, t.k % 2 ? mom : mle);
  ++checked;
}

Table random_table(DType dtype, int rows, int columns, Random& random, double offset = 0) {
  Table table(dtype, rows, columns);
  for (int64_t i = 0; i < int64_t(rows) * columns; ++i) table.set(i, random.normal() + offset);
  return table;
}

std::vector<int64_t> identity(int rows) {
  std::vector<int64_t> self(rows);
  for (int i = 0; i < rows; ++i) self[i] = i;
  return self;
}

// ---- the problems

void check_shapes(const Kernels& kernels, DType dtype, int every) {
  Random random{uint64_t(dtype) + 11};
  // Around the panels of every width (8, 12, 16, 24 and 48 queries). Up to 256 references are met directly, as are those of
  // which one in seven is wanted (direct.h); the others by the tile.
  const int few[] = {31, 49, 65, 95, 97, 101, 129, 193, 199, 241}, many[] = {257, 263, 287, 289, 300, 313, 335, 337};
  for (int columns = 1 + int(dtype) % every; columns <= 129; columns += every) {
    const bool small = random.below(3) == 0;
    const int rows = small ? few[random.below(10)] : many[random.below(8)];
    Table x = random_table(dtype, rows, columns, random, columns % 3 ? 0 : 5);
    for (int copy = 0; copy < rows / 10; ++copy) {  // duplicates
      const int from = random.below(rows), to = random.below(rows);
      for (int c = 0; c < columns; ++c)
        if (size_of(dtype) == 2) {
          uint16_t bits;
          std::memcpy(&bits, x.bytes.data() + (int64_t(from) * columns + c) * 2, 2);
          x.set_bits(int64_t(to) * columns + c, bits);
        } else {
          x.set(int64_t(to) * columns + c, x.row(from)[c]);
        }
    }
    check(kernels, {x, nullptr, identity(rows), 3 + random.below(rows / 9)}, small ? "small batch" : "batch", true);
    if (small)
      check(kernels, {x, nullptr, identity(rows), rows / 4 + random.below(rows / 2), columns % 2 == 0}, "direct batch", true);
    const Table y = random_table(dtype, many[random.below(8)], columns, random, columns % 3 ? 0 : 5);
    std::vector<int64_t> self(rows);
    for (int i = 0; i < rows; ++i) self[i] = i % 3 ? -1 : random.below(y.rows);
    check(kernels, {x, &y, self, 1 + random.below(y.rows / 8)}, "one-sided", true);
    if (small) check(kernels, {x, &y, self, y.rows / 4 + random.below(y.rows / 4)}, "direct one-sided", false);
  }
}

// Sums of squares of integers are exact in every set, so distances are the same bits everywhere.
void check_integers(const Kernels& kernels, DType dtype) {
  Random random{5};
  for (int columns : {3, 64, 150}) {
    Table x(dtype, 297, columns);
    for (int64_t i = 0; i < int64_t(x.rows) * columns; ++i) x.set(i, random.below(31) - 15);
    check(kernels, {x, nullptr, identity(x.rows), 9, false, true}, "integers", false);
    check(kernels, {x, nullptr, identity(x.rows), 80, false, true}, "integers, direct", false);
  }
}

void check_not_finite(const Kernels& kernels, DType dtype) {
  Random random{6};
  Table x = random_table(dtype, 297, 50, random);
  for (int bad = 0; bad < 9; ++bad) {
    const int64_t at = int64_t(random.below(x.rows)) * x.columns + random.below(x.columns);
    if (dtype == DType::f16) x.set_bits(at, bad % 3 == 0 ? 0x7c00 : bad % 3 == 1 ? 0xfc00 : 0x7e01);
    else x.set(at, bad % 3 == 0 ? kInfinity : bad % 3 == 1 ? -kInfinity : std::nan(""));
  }
  check(kernels, {x, nullptr, identity(x.rows), 12}, "NaN and Inf", true);
  check(kernels, {x, nullptr, identity(x.rows), 60}, "NaN and Inf, direct", true);
}

// Every finite number of a dtype of two bytes is its own distance from 0.
void check_every_value(const Kernels& kernels, DType dtype) {
  const int inside = dtype == DType::f16 ? 0x7c00 : 0x7f80;  // the bits of infinity
  Table x(dtype, 1, 1), y(dtype, 2 * inside, 1);
  x.set_bits(0, 0);
  for (int j = 0; j < 2 * inside; ++j) y.set_bits(j, uint16_t(j < inside ? j : 0x8000 + j - inside));
  check(kernels, {x, &y, {-1}, y.rows}, "every value", false);
}

// ---- sums over all pairs of unit rows

std::vector<float> unit_rows(int rows, int columns, Random& random) {
  std::vector<float> out(size_t(rows) * columns);
  for (int i = 0; i < rows; ++i) {
    double square = 0;
    std::vector<double> row(columns);
    for (double& v : row) v = random.normal(), square += v * v;
    for (int c = 0; c < columns; ++c) out[size_t(i) * columns + c] = float(row[c] / std::sqrt(square));
  }
  return out;
}

// Relative to the gradient as a whole; a logit is off by 2^-23 of its size, and a few roundings are added.
void require_near(const std::vector<float>& got, const std::vector<double>& wanted, double largest_logit, const char* what) {
  double error = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) error += (got[i] - wanted[i]) * (got[i] - wanted[i]), size += wanted[i] * wanted[i];
  require(std::sqrt(error) <= 1.2e-7 * (4 + largest_logit) * std::sqrt(size), what, std::sqrt(error), std::sqrt(size));
}

void check_pairs(const Kernels& kernels, int rows, int candidates, int columns, bool same, int views, float scale,
                 bool softplus) {
  Random random{uint64_t(rows + columns)};
  place = "pairs " + std::to_string(rows) + " " + std::to_string(candidates) + " " + std::to_string(columns) + " scale " +
          std::to_string(scale) + (softplus ? " softplus" : "") + (same ? " same" : "");
  const std::vector<float> x = unit_rows(rows, columns, random);
  const std::vector<float> y = same ? x : unit_rows(candidates, columns, random);
  const float bias = softplus ? -2 : 0;
  const int64_t own = same ? 0 : candidates >= rows ? candidates - rows : -1;
  const PairsProblem problem{x.data(), y.data(), rows, candidates, columns, columns, columns, same, scale, softplus, bias,
                             own, views, 3};
  std::vector<float> state(2 * rows), by_value(rows), by_x(x.size()), by_y(same ? 0 : y.size());
  for (float& v : by_value) v = float(random.normal());
  Control control;
  std::vector<float> again(state.size()), unit(x.size()), ones(rows, 1.f), by_ones(x.size());
  kernels.pair_sums(problem, state.data(), nullptr, control);
  kernels.pair_sums(problem, again.data(), unit.data(), control);
  kernels.pair_gradients(problem, state.data(), ones.data(), by_ones.data(), nullptr, control);
  require_near(again, std::vector<double>(state.begin(), state.end()), 0, "sums beside a gradient");
  require_near(unit, std::vector<double>(by_ones.begin(), by_ones.end()), 0, "gradient beside the sums");
  kernels.pair_gradients(problem, state.data(), by_value.data(), by_x.data(), same ? nullptr : by_y.data(), control);

  std::vector<double> of_x(x.size()), of_y(y.size());
  for (int i = 0; i < rows; ++i) {
    std::vector<double> logit(candidates, -kInfinity);
    double total = 0, slope = 0;
    for (int j = 0; j < candidates; ++j) {
      if (own >= 0 && (j == own + i || (views == 2 && j == own + (i + rows / 2) % rows))) continue;
      double dot = 0;
      for (int c = 0; c < columns; ++c) dot += double(x[size_t(i) * columns + c]) * y[size_t(j) * columns + c];
      logit[j] = scale * dot + bias;
      total += softplus ? std::log1p(std::exp(logit[j])) : std::exp(logit[j]);
      slope += 1 / (1 + std::exp(-logit[j]));
    }
    const double allowed = 1.2e-7 * (4 + scale + std::fabs(bias));
    if (softplus) {
      require(std::fabs(state[i] - slope) <= allowed * slope, "slope", state[i], slope);
      require(std::fabs(state[rows + i] - total) <= allowed * total, "value", state[rows + i], total);
    } else if (total > 0) {
      const double value = scale * double(state[i]) + std::log(double(state[rows + i])), truth = std::log(total);
      require(std::fabs(value - truth) <= allowed * (1 + std::fabs(truth)), "logarithm", value, truth);
    } else {
      require(state[rows + i] == 0, "no candidates", state[rows + i], 0);
      continue;
    }
    for (int j = 0; j < candidates; ++j) {
      const double w = by_value[i] * (softplus ? 1 / (1 + std::exp(-logit[j])) : std::exp(logit[j]) / total);
      for (int c = 0; c < columns; ++c) {
        of_x[size_t(i) * columns + c] += w * y[size_t(j) * columns + c];
        of_y[size_t(j) * columns + c] += w * x[size_t(i) * columns + c];
      }
    }
  }
  if (same)
    for (size_t i = 0; i < of_x.size(); ++i) of_x[i] += of_y[i];
  require_near(by_x, of_x, scale - bias, "gradient by rows");
  if (!same) require_near(by_y, of_y, scale - bias, "gradient by candidates");
  ++checked;
}

void check_all_pairs(const Kernels& kernels) {
  for (float scale : {2.f, 29.f, 80.f})
    for (bool softplus : {false, true}) {
      check_pairs(kernels, 1, 1, 1, true, 1, scale, softplus);
      check_pairs(kernels, 26, 26, 5, true, 2, scale, softplus);
      check_pairs(kernels, 101, 101, 37, true, 1, scale, softplus);
      check_pairs(kernels, 50, 67, 130, false, 2, scale, softplus);
      check_pairs(kernels, 70, 33, 16, false, 1, scale, softplus);
    }
}

}  // namespace

// Argument: take every n-th number of columns (an emulator is slow).
int main(int argc, char** argv) {
  const char* asked = std::getenv("LDREG_CPU_ISA");
  const Kernels* kernels = choose_kernels(asked ? asked : "");
  if (!kernels) return std::printf("no %s here: %s\n", asked, executable_sets().c_str()), 2;
  const int every = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    check_shapes(*kernels, dtype, every);
    check_integers(*kernels, dtype);
    check_not_finite(*kernels, dtype);
    if (size_of(dtype) == 2) check_every_value(*kernels, dtype);
  }
  check_all_pairs(*kernels);
  std::printf("%s: %d problems\n", kernels->isa, checked);
}
