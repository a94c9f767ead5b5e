// Python's face of a worker: its loop, what crosses its pipes, and which of its rows are whose.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bind/bind.h"
#include "play/pipes.h"
#include "play/rows.h"
#include "play/worker.h"

namespace py = pybind11;

namespace shmzero {
namespace {

py::bytes pack_grant(std::uint64_t id, std::uint32_t first_round,
                     const std::vector<std::int16_t>& totals) {
  Unit unit = {.id = id, .first_round = first_round};
  check_range("number of totals", static_cast<long long>(totals.size()), 0, kMaxPlayers);
  std::copy(totals.begin(), totals.end(), unit.totals.begin());
  return py::bytes(reinterpret_cast<const char*>(&unit), sizeof unit);
}

py::bytes pack_frame(std::uint64_t unit, const py::bytes& record, bool last) {
  std::string frame;
  append_frame(frame, unit, last, std::string_view(record));
  return frame;
}

py::tuple read_frames(const py::bytes& data) {
  const std::string_view bytes(data);
  py::list frames;
  std::size_t used = 0;
  while (const auto frame = first_frame(bytes.substr(used))) {
    frames.append(py::make_tuple(frame->unit, py::bytes(frame->record.data(), frame->record.size()),
                                 frame->last));
    used += frame->num_bytes;
  }
  return py::make_tuple(frames, used);
}

py::array_t<std::int64_t> rows_of_other_network(
    const py::array_t<std::uint64_t, py::array::c_style>& masks) {
  if (masks.ndim() != 1) throw py::value_error("masks must have 1 dimension");
  std::vector<std::int64_t> rows;
  for (py::ssize_t row = 0; row < masks.size(); ++row) {
    if ((*masks.data(row) & kOtherNetwork) != 0) rows.push_back(row);
  }
  return py::array_t<std::int64_t>(static_cast<py::ssize_t>(rows.size()), rows.data());
}

void run_worker(Segment& segment, std::uint32_t worker, int grant_fd, int record_fd,
                std::uint32_t lanes, const PlaySettings& settings, double spin_us) {
  const SegmentSizes& sizes = segment.sizes();
  check_index("worker", worker, sizes.num_workers);
  check_range("lanes", lanes, 1, 1'000'000);
  check_play(settings);
  if (sizes.wire != Wire::kFloat16 || sizes.state_dim != kNumFeatures ||
      sizes.action_dim != kNumActions || sizes.value_dim != 1) {
    throw py::value_error("a worker asks for " + std::to_string(kNumActions) +
                          " actions and 1 value of rows of " + std::to_string(kNumFeatures) +
                          " float16 features; the segment is made for others");
  }
  Worker loop(segment, worker, grant_fd, record_fd, lanes, ns_of_ms(spin_us / 1000.0), settings);
  sound([&] {
    const GilRelease release;
    loop.run();
    return 0;
  });
}

}  // namespace

void bind_play(py::module_& m) {
  m.attr("MAX_GRANTS_PER_WRITE") = kMaxGrantsPerWrite;
  m.attr("OTHER_NETWORK") = kOtherNetwork;
  m.def("pack_grant", &pack_grant, py::arg("unit"), py::arg("first_round") = 0,
        py::arg("totals") = std::vector<std::int16_t>{});
  m.def("pack_frame", &pack_frame, py::arg("unit"), py::arg("record"), py::arg("last"));
  m.def("read_frames", &read_frames, py::arg("data"));
  m.def("rows_of_other_network", &rows_of_other_network, py::arg("masks").noconvert());
  m.def("run_worker", &run_worker, py::arg("segment"), py::arg("worker"), py::arg("grant_fd"),
        py::arg("record_fd"), py::arg("lanes"), py::arg("settings"), py::arg("spin_us") = 0.0);
}

}  // namespace shmzero
