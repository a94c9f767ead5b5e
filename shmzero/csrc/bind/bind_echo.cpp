// Measurements of the slots alone: two threads that echo rows through a segment of their own.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "bind/bind.h"
#include "shm/server_port.h"
#include "shm/worker_port.h"

namespace py = pybind11;

namespace shmzero {
namespace {

/// Echo between two threads of this process over a segment of its own.
struct Echo {
  explicit Echo(const SegmentSizes& sizes) {
    check_sizes(sizes);
    const SegmentLayout layout(sizes);
    fd = memfd_create("shmzero-echo", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(layout.total)) != 0) {
      throw std::runtime_error("memfd for the echo");
    }
    segment = Segment::create(fd, sizes, 0);
  }
  ~Echo() { close(fd); }

  /// Serves until told to stop: every policy row is the first elements of its state, widened not at
  /// all; what is measured is the way there and back.
  void serve(std::uint32_t limit_rows, std::uint64_t spin_ns) {
    ServerPort port(*segment, 0, 1);
    const SegmentSizes& sizes = segment->sizes();
    std::vector<std::byte> states(limit_rows * sizes.state_bytes());
    std::vector<std::uint64_t> masks(static_cast<std::size_t>(limit_rows) * sizes.mask_words());
    std::vector<float> policies(static_cast<std::size_t>(limit_rows) * sizes.action_dim, 0.5f);
    std::vector<float> values(static_cast<std::size_t>(limit_rows) * sizes.value_dim, 0.5f);
    while (!stop.load(std::memory_order_relaxed)) {  // a flag alone; join orders the rest
      const auto gathered =
          port.gather({.states = states.data(), .masks = masks.data()},
                      {.limit_rows = limit_rows, .timeout_ns = 0}, 1'000'000, spin_ns);
      if (gathered.rows > 0) port.scatter(gathered.batch, policies.data(), values.data(), 1);
    }
  }

  int fd = -1;
  std::unique_ptr<Segment> segment;
  std::atomic<bool> stop = false;
};

/// Median nanoseconds of one row there and back, both sides spinning.
double bench_round_trip(std::uint32_t trips) {
  if (trips == 0) throw std::invalid_argument("trips is 0; allowed: 1 or more");
  Echo echo({1, 1, 2, 1, 256, 52, 1, Wire::kFloat16});
  constexpr std::uint64_t kSpin = 1'000'000;
  std::thread server([&] { echo.serve(1, kSpin); });
  WorkerPort port(*echo.segment, 0);
  std::vector<std::uint64_t> times;
  times.reserve(trips);
  std::vector<std::byte> state(512, std::byte{1});
  float sum = 0.0f;
  for (std::uint32_t i = 0; i < trips; ++i) {
    const std::uint64_t start = now_ns();
    if (!port.begin(0)) throw std::logic_error("echo slot is not free");
    const SlotRows rows = port.rows(0);
    std::memcpy(rows.states, state.data(), state.size());
    rows.masks[0] = i;
    port.publish(0, 1);
    while (!port.answered(0)) port.wait(1, kLongestWaitNs, kSpin);
    sum += rows.policies[0];
    times.push_back(now_ns() - start);
  }
  echo.stop = true;
  server.join();
  if (sum <= 0.0f) throw std::logic_error("echo answered nothing");
  std::nth_element(times.begin(), times.begin() + trips / 2, times.end());
  return static_cast<double>(times[trips / 2]);
}

/// Rows a second through slots of `rows_per_slot`: written, gathered, answered, read.
double bench_rows(std::uint32_t rows_per_slot, std::uint32_t num_slots, std::uint64_t total_rows) {
  Echo echo({1, 1, num_slots, rows_per_slot, 256, 52, 1, Wire::kFloat16});
  constexpr std::uint64_t kSpin = 50'000;
  std::thread server([&] { echo.serve(rows_per_slot, kSpin); });
  WorkerPort port(*echo.segment, 0);
  std::vector<std::byte> state(512, std::byte{1});
  std::vector<bool> out(num_slots, false);
  const std::uint32_t all = (1u << num_slots) - 1;
  float sum = 0.0f;
  std::uint64_t read_rows = 0;
  const std::uint64_t start = now_ns();
  while (read_rows < total_rows) {
    bool moved = false;
    for (std::uint32_t s = 0; s < num_slots; ++s) {
      if (out[s] && !port.answered(s)) continue;
      const SlotRows rows = port.rows(s);
      if (!port.begin(s)) throw std::logic_error("echo slot is not ours");
      moved = true;
      if (out[s]) {
        for (std::size_t r = 0; r < rows_per_slot; ++r) {
          for (int a = 0; a < 52; ++a) sum += rows.policies[r * 52 + static_cast<std::size_t>(a)];
          sum += rows.values[r];
        }
        read_rows += rows_per_slot;
      }
      for (std::size_t r = 0; r < rows_per_slot; ++r) {
        std::memcpy(rows.states + r * 512, state.data(), 512);
        rows.masks[r] = r;
      }
      port.publish(s, rows_per_slot);
      out[s] = true;
    }
    if (!moved) port.wait(all, kLongestWaitNs, kSpin);
  }
  const double seconds = static_cast<double>(now_ns() - start) * 1e-9;
  echo.stop = true;
  server.join();
  if (sum <= 0.0f) throw std::logic_error("echo answered nothing");
  return static_cast<double>(read_rows) / seconds;
}

}  // namespace

void bind_echo(py::module_& m) {
  m.def("bench_round_trip", &bench_round_trip, py::arg("trips"), py::call_guard<GilRelease>());
  m.def("bench_rows", &bench_rows, py::arg("rows_per_slot"), py::arg("num_slots"),
        py::arg("total_rows"), py::call_guard<GilRelease>());
}

}  // namespace shmzero
