// ldreg_kernels._cuda: argument unpacking for csrc/cuda. Imports on a machine with no driver and no GPU.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/ldreg_cuda.h"
#include "cuda/probe.h"

#if !defined(LDREG_SIMULATED)
#define LDREG_SIMULATED 0  // 1 in the module that python_tests/simt builds for tests
#endif

namespace py = pybind11;

namespace {

// LDREG_CUDA_ARCHS comes from the build: "sm_80;sm_90a;compute_90".
std::vector<std::string> architectures() {
  std::vector<std::string> names;
  std::istringstream text(LDREG_CUDA_ARCHS);
  for (std::string name; std::getline(text, name, ';');) names.push_back(name);
  return names;
}

std::optional<std::string> unavailable_reason() {
  const std::string reason = ldreg::cuda::unavailable_reason();
  if (reason.empty()) return std::nullopt;
  return reason;
}

}  // namespace

using namespace py::literals;

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA part of ldreg_kernels.";
  m.def("unavailable_reason", &unavailable_reason, "None if the kernels can run on the current device, else why not.");
  m.def("device_count", &ldreg::cuda::device_count, "Visible CUDA devices; 0 without a driver.");
  m.def("driver_version", &ldreg::cuda::driver_version, "CUDA version of the driver, 13000 for 13.0; 0 without one.");
  m.def("runtime_version", &ldreg::cuda::runtime_version, "CUDA version linked in, 13000 for 13.0.");
  m.def("architectures", &architectures, "Compiled in, e.g. [\"sm_80\", \"sm_90a\", \"compute_90\"]; the last is PTX.");
  m.def("lid_formulas", &ldreg::cuda::lid_formulas, "distances"_a, "on_device"_a,
        "Per estimator (mom, mom_amsaleg, mle, hill, hill_unbiased, mada): [LID, d lnLID / d d_1, ..., d lnLID / d d_k] "
        "for ascending distances, computed on the current device or, by the same source, on the host.",
        py::call_guard<py::gil_scoped_release>());
  m.attr("simulated") = bool(LDREG_SIMULATED);

  using namespace ldreg::cuda;
  // Local, so that the module which tests build for the host can be loaded beside this one.
  py::class_<Call> call(m, "Call", py::module_local(),
                        "What is asked for, as csrc/cuda/ldreg_cuda.h describes it; kernels/cuda_backend.py fills it in.");
  call.def(py::init<>());
  call.def_property("dtype", [](const Call& c) { return static_cast<int>(c.dtype); },
                    [](Call& c, int dtype) { c.dtype = static_cast<DType>(dtype); });
#define LDREG_FIELD(name) call.def_readwrite(#name, &Call::name);
  LDREG_FIELD(device) LDREG_FIELD(B) LDREG_FIELD(N) LDREG_FIELD(D) LDREG_FIELD(x_stride) LDREG_FIELD(y_stride)
  LDREG_FIELD(same) LDREG_FIELD(exact) LDREG_FIELD(drop_smallest) LDREG_FIELD(wanted) LDREG_FIELD(tiles) LDREG_FIELD(loop)
  LDREG_FIELD(budget) LDREG_FIELD(knn) LDREG_FIELD(gradient) LDREG_FIELD(loss) LDREG_FIELD(estimator) LDREG_FIELD(k)
  LDREG_FIELD(form) LDREG_FIELD(reduction) LDREG_FIELD(track)
#undef LDREG_FIELD

  py::class_<Planned>(m, "Planned", py::module_local(), "A call, planned for its device; launched as often as wanted.")
      .def(py::init<const Call&>(), "call"_a)
      .def(py::init([](const Call& planned, int multiprocessors, int shared_bytes, int major) {
             return std::make_unique<Planned>(planned, Gpu{multiprocessors, shared_bytes, major});
           }),
           "call"_a, py::kw_only(), "multiprocessors"_a, "shared_bytes"_a, "major"_a,
           "For a GPU that need not be there: to look at, not to launch.")
      .def_property_readonly("workspace", &Planned::workspace, "Bytes, uninitialised, that a launch needs.")
      .def_property_readonly("state", &Planned::state, "32-bit counters that a launch needs; see state_of.")
      .def_property_readonly("words", &Planned::words, "The plan in words.")
      .def_property_readonly("numbers", &Planned::numbers, "The plan in numbers, by name.")
      .def_property_readonly(
          "segments",
          [](const Planned& planned) {
            py::list found;
            for (const Segment& s : planned.segments())
              found.append(py::make_tuple(s.job, s.jobs, s.panel, s.step, s.met, s.meets));
            return found;
          },
          "Jobs of a launch in order: (job, how many, panel, step, meetings before the step, and after it).")
      // By position, because a name costs as much as three addresses.
      .def("launch",
           [](const Planned& planned, uintptr_t x, uintptr_t y, uintptr_t own_map, int64_t own_offset, double goal,
              uintptr_t distances, uintptr_t indices, uintptr_t lid, uintptr_t degenerate, uintptr_t tracked, uintptr_t grad,
              uintptr_t value, uintptr_t coeff, uintptr_t workspace, uintptr_t stream) {
             planned.launch({x, y, own_map, own_offset, goal, distances, indices, lid, degenerate, tracked, grad, value, coeff},
                            workspace, stream);
           },
           "Launch on a stream (its handle); does not wait.", py::call_guard<py::gil_scoped_release>());
  m.def("state_of", &state_of, "device"_a, "stream"_a,
        "The counters of a stream, all 0 between launches; empty before the first. Waits for the stream.",
        py::call_guard<py::gil_scoped_release>());  // or nobody could stop a wait that does not end
}
