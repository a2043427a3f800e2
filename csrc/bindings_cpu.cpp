// The Python face of the CPU kernels: argument unpacking, the choice of instruction set, the GIL and Ctrl-C. No logic.
//
// Tensors arrive as addresses and sizes (native.py takes them apart), so that one build serves every torch version.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpu/blocks.h"
#include "cpu/choice.h"
#include "cpu/ldreg_cpu.h"
#include "cpu/parallel.h"
#include "cpu/problem.h"

namespace py = pybind11;

namespace {

using ldreg::Kernels;

// The best set this machine executes; LDREG_CPU_ISA names a lesser one (for tests and comparisons).
const Kernels& native_kernels() {
  const char* asked = std::getenv("LDREG_CPU_ISA");
  if (const Kernels* chosen = ldreg::choose_kernels(asked ? asked : "")) return *chosen;
  throw py::value_error("LDREG_CPU_ISA must name an instruction set of this build that this machine executes (" +
                        ldreg::executable_sets() + "), got '" + asked + "'");
}

bool interrupted(void*) {
  py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;  // true leaves the Python exception set
}

// Run `work` without the GIL, polling for signals; a pending KeyboardInterrupt is raised afterwards.
template <class Work>
void run(Work&& work) {
  ldreg::Control control;
  control.poll = interrupted;
  {
    py::gil_scoped_release release;
    work(control);
  }
  if (PyErr_Occurred()) throw py::error_already_set();
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Pooled memory with the buffer protocol, for a tensor that lives inside the package.
struct PooledBuffer {
  size_t bytes, taken;
  void* data;
  explicit PooledBuffer(size_t n) : bytes(n), taken(n), data(ldreg::take_block(&taken)) {}
  ~PooledBuffer() { ldreg::give_block(data, taken); }
  PooledBuffer(const PooledBuffer&) = delete;
  PooledBuffer& operator=(const PooledBuffer&) = delete;
};

struct PyProblem {
  py::object tensors;  // kept alive: the addresses are theirs
  ldreg::Problem p;
  PyProblem(py::object held, uintptr_t x, int64_t rows, int64_t x_stride, uintptr_t y, int64_t references,
            int64_t y_stride, int64_t columns, int dtype, bool same, uintptr_t self_map, int64_t self_offset, int k,
            bool exact, bool drop_smallest, int threads)
      : tensors(std::move(held)),
        p{{pointer<void>(x), rows, x_stride},
          {pointer<void>(y), references, y_stride},
          columns,
          static_cast<ldreg::DType>(dtype),
          same,
          {pointer<const int64_t>(self_map), self_offset},
          k,
          exact,
          drop_smallest,
          threads} {
    const int64_t most = std::max(rows, references);
    if (most > std::numeric_limits<int>::max())
      throw py::value_error("x and y must have fewer than 2^31 rows each on the CPU backend, got " + std::to_string(most));
  }
};

void knn(const PyProblem& problem, uintptr_t distances, uintptr_t indices) {
  const Kernels& kernels = native_kernels();
  run([&](ldreg::Control& control) {
    kernels.knn(problem.p, {pointer<void>(distances), pointer<int64_t>(indices)}, control);
  });
}

using Tracks = std::vector<std::pair<int, int>>;

void lid(const PyProblem& problem, int estimator, int k, const Tracks& track, uintptr_t lid, uintptr_t degenerate,
         uintptr_t tracked, uintptr_t grad) {
  const Kernels& kernels = native_kernels();
  std::vector<ldreg::Track> tracks;
  for (const auto& [name, size] : track) tracks.push_back({name, size});
  const ldreg::LidRequest request{estimator, k, tracks.data(), static_cast<int>(tracks.size())};
  const ldreg::LidOutput out{pointer<void>(lid), pointer<uint8_t>(degenerate), pointer<void>(tracked), pointer<void>(grad)};
  run([&](ldreg::Control& control) { kernels.lid(problem.p, request, out, control); });
}

template <class Real>
void loss(int64_t rows, int form, double target, int reduction, uintptr_t lid, uintptr_t degenerate, uintptr_t value,
          uintptr_t coeff) {
  ldreg::ldreg_loss(pointer<const Real>(lid), pointer<const uint8_t>(degenerate), rows, form, target,
                    static_cast<ldreg::Reduction>(reduction), pointer<Real>(value), pointer<Real>(coeff));
}

// `lids` and `degenerate` may be 0: the caller does not want them.
void ldreg_loss(const PyProblem& problem, int estimator, int k, const Tracks& track, uintptr_t lids, uintptr_t degenerate,
                uintptr_t tracked, uintptr_t grad, int form, double target, int reduction, uintptr_t value,
                uintptr_t coeff) {
  const int64_t rows = problem.p.x.rows;
  std::unique_ptr<double[]> unwanted;
  if (!lids) {
    unwanted.reset(new double[2 * rows]);
    lids = reinterpret_cast<uintptr_t>(unwanted.get());
    degenerate = reinterpret_cast<uintptr_t>(unwanted.get() + rows);
  }
  lid(problem, estimator, k, track, lids, degenerate, tracked, grad);
  const auto of_rows = problem.p.dtype == ldreg::DType::f64 ? &loss<double> : &loss<float>;
  of_rows(rows, form, target, reduction, lids, degenerate, value, coeff);
}

struct PyPairs {
  py::object tensors;  // kept alive: the addresses are theirs
  ldreg::PairsProblem p;
  PyPairs(py::object held, uintptr_t x, int64_t rows, int64_t x_stride, uintptr_t y, int64_t candidates, int64_t y_stride,
          int64_t columns, bool same, float scale, bool softplus, float bias, int64_t own, int views, int threads)
      : tensors(std::move(held)),
        p{pointer<const float>(x), pointer<const float>(y), rows, candidates, columns, x_stride, y_stride, same, scale,
          softplus, bias, own, views, threads} {}
};

void pair_sums(const PyPairs& pairs, uintptr_t state, uintptr_t by_x) {
  const Kernels& kernels = native_kernels();
  run([&](ldreg::Control& control) { kernels.pair_sums(pairs.p, pointer<float>(state), pointer<float>(by_x), control); });
}

void pair_gradients(const PyPairs& pairs, uintptr_t state, uintptr_t by_value, uintptr_t by_x, uintptr_t by_y) {
  const Kernels& kernels = native_kernels();
  run([&](ldreg::Control& control) {
    kernels.pair_gradients(pairs.p, pointer<const float>(state), pointer<const float>(by_value), pointer<float>(by_x),
                           pointer<float>(by_y), control);
  });
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "ldreg_kernels CPU kernels over raw addresses; ldreg_kernels.kernels.native is the caller.";
  m.def("borrow_workers", [](uintptr_t parallel) { ldreg::borrow_workers(reinterpret_cast<ldreg::OpenmpParallel>(parallel)); },
        "Use the workers of the OpenMP runtime whose GOMP_parallel is at this address; 0: threads of our own.");
  m.def("always_share", &ldreg::always_share, py::arg("always"), "Use all threads for work of any size, which only tests want.");
  m.def("isa", [] { return std::string(native_kernels().isa); }, "The instruction set the kernels run with.");
  py::class_<PyProblem>(m, "Problem")
      .def(py::init<py::object, uintptr_t, int64_t, int64_t, uintptr_t, int64_t, int64_t, int64_t, int, bool, uintptr_t,
                    int64_t, int, bool, bool, int>(),
           py::arg("tensors"), py::arg("x"), py::arg("rows"), py::arg("x_stride"), py::arg("y"), py::arg("references"),
           py::arg("y_stride"), py::arg("columns"), py::arg("dtype"), py::arg("same"), py::arg("self_map"),
           py::arg("self_offset"), py::arg("k"), py::arg("exact"), py::arg("drop_smallest"), py::arg("threads"));
  m.def("knn", &knn, py::arg("problem"), py::arg("distances"), py::arg("indices"));
  m.def("lid", &lid, py::arg("problem"), py::arg("estimator"), py::arg("k"), py::arg("track"), py::arg("lid"),
        py::arg("degenerate"), py::arg("tracked"), py::arg("grad"));
  m.def("ldreg", &ldreg_loss, py::arg("problem"), py::arg("estimator"), py::arg("k"), py::arg("track"), py::arg("lid"),
        py::arg("degenerate"), py::arg("tracked"), py::arg("grad"), py::arg("form"), py::arg("target"), py::arg("reduction"),
        py::arg("value"), py::arg("coeff"));
  py::class_<PyPairs>(m, "Pairs")
      .def(py::init<py::object, uintptr_t, int64_t, int64_t, uintptr_t, int64_t, int64_t, int64_t, bool, float, bool, float,
                    int64_t, int, int>(),
           py::arg("tensors"), py::arg("x"), py::arg("rows"), py::arg("x_stride"), py::arg("y"), py::arg("candidates"),
           py::arg("y_stride"), py::arg("columns"), py::arg("same"), py::arg("scale"), py::arg("softplus"), py::arg("bias"),
           py::arg("own"), py::arg("views"), py::arg("threads"));
  m.def("pair_sums", &pair_sums, py::arg("pairs"), py::arg("state"), py::arg("by_x"));
  m.def("pair_gradients", &pair_gradients, py::arg("pairs"), py::arg("state"), py::arg("by_value"), py::arg("by_x"),
        py::arg("by_y"));
  py::class_<PooledBuffer>(m, "PooledBuffer", py::buffer_protocol())
      .def(py::init<size_t>(), py::arg("bytes"))
      .def_buffer([](PooledBuffer& b) {
        return py::buffer_info(b.data, 1, "B", 1, {static_cast<py::ssize_t>(b.bytes)}, {py::ssize_t(1)});
      });
  m.def("prefer_large_pages", [](uintptr_t block, size_t bytes) { ldreg::prefer_large_pages(pointer<void>(block), bytes); });
}
