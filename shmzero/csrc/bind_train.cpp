// Python's face of what only the learner uses.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bind.h"
#include "full_deal.h"

namespace py = pybind11;

namespace shmzero {
namespace {

/// The array `name` of `arrays`, checked: C order, `dtype`, [rows, columns] or [rows].
template <class T>
T* column(const py::dict& arrays, const char* name, const char* dtype, py::ssize_t rows,
          py::ssize_t columns) {
  const auto fail = [&](const std::string& why) {
    throw py::value_error(std::string("replay_full_deal: array '") + name + "' " + why + "; wanted " +
                          dtype + " [" + std::to_string(rows) +
                          (columns > 1 ? ", " + std::to_string(columns) : "") + "] in C order");
  };
  if (!arrays.contains(name)) fail("is missing");
  if (!py::isinstance<py::array>(arrays[name])) fail("is no array");
  auto array = py::cast<py::array>(arrays[name]);
  if (!array.dtype().is(py::dtype(dtype)) && !array.dtype().equal(py::dtype(dtype))) fail("has another dtype");
  const bool fits = array.ndim() == (columns > 1 ? 2 : 1) && array.shape(0) == rows &&
                    (columns == 1 || array.shape(1) == columns);
  if (!fits) fail("has another shape");
  if (!(array.flags() & py::array::c_style)) fail("is strided");
  return static_cast<T*>(array.mutable_data());
}

FullDealView view_of(const py::dict& arrays) {
  if (!arrays.contains("masks")) throw py::value_error("replay_full_deal: array 'masks' is missing");
  const py::ssize_t rows = py::cast<py::array>(arrays["masks"]).size();
  if (rows == 0) throw py::value_error("replay_full_deal: arrays of 0 rows; allowed: 1 or more");
  return {
      column<std::uint16_t>(arrays, "features", "float16", rows, kNumFeatures),
      column<std::uint64_t>(arrays, "masks", "uint64", rows, 1),
      column<std::uint64_t>(arrays, "hands", "uint64", rows, kNumHands),
      column<std::uint8_t>(arrays, "actions", "uint8", rows, 1),
      column<float>(arrays, "utilities", "float32", rows, 1),
      column<std::uint16_t>(arrays, "policies", "float16", rows, kNumActions),
      column<std::uint16_t>(arrays, "seat_features", "float16", rows, kNumFeatures),
      column<float>(arrays, "seat_utilities", "float32", rows, 1),
      column<std::uint32_t>(arrays, "versions", "uint32", rows, 1),
      static_cast<std::size_t>(rows),
  };
}

std::size_t replay_records(const std::vector<py::bytes>& records, const py::dict& arrays,
                           std::size_t at, std::uint64_t seat_seed) {
  const FullDealView view = view_of(arrays);
  const std::vector<std::string> owned(records.begin(), records.end());
  const py::gil_scoped_release release;
  std::size_t written = 0;
  for (const std::string& bytes : owned) {
    written += replay_full_deal(decode_record(bytes), seat_seed, view, at + written);
  }
  return written;
}

}  // namespace

void bind_train(py::module_& m) {
  m.attr("NUM_HANDS") = kNumHands;
  m.def("replay_full_deal", &replay_records, py::arg("records"), py::arg("arrays"), py::arg("at") = 0,
        py::arg("seat_seed") = 0);
}

}  // namespace shmzero
