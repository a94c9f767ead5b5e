// Python's face of the segment and its ports.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <iterator>
#include <memory>
#include <optional>
#include <system_error>
#include <tuple>

#include "bind/bind.h"
#include "game/encode.h"
#include "shm/client.h"
#include "shm/finite.h"
#include "shm/masks.h"
#include "shm/reaper.h"
#include "shm/server_port.h"
#include "shm/service.h"
#include "shm/slot.h"
#include "shm/worker_port.h"

namespace py = pybind11;

namespace shmzero {
namespace {

SegmentSizes make_sizes(std::uint32_t servers, std::uint32_t workers, std::uint32_t slots,
                        std::uint32_t rows, std::uint32_t state_dim, std::uint32_t action_dim,
                        std::uint32_t value_dim, const std::string& wire) {
  if (wire != "float16" && wire != "float32") {
    throw py::value_error("wire is '" + wire + "'; allowed: float16, float32");
  }
  const SegmentSizes sizes = {.num_servers = servers,
                              .num_workers = workers,
                              .slots_per_worker = slots,
                              .rows_per_slot = rows,
                              .state_dim = state_dim,
                              .action_dim = action_dim,
                              .value_dim = value_dim,
                              .wire = wire == "float16" ? Wire::kFloat16 : Wire::kFloat32};
  check_sizes(sizes);
  return sizes;
}

[[noreturn]] void raise_os_error(int code) {
  errno = code;
  PyErr_SetFromErrno(PyExc_OSError);
  throw py::error_already_set();
}

/// Calls `body` and turns the core's exceptions into shmzero.errors and OSError.
template <class Body>
auto translated(Body&& body) {
  try {
    return body();
  } catch (const SlotLost& error) {
    raise_error(
        "RequestLost",
        std::string("this request's place in shared memory was taken away: ") + error.what());
  } catch (const CorruptSegment& error) {
    raise_error("SegmentCorrupt", error.what());
  } catch (const FailedRequest& error) {
    raise_error("ModelFailed", error.what());
  } catch (const std::system_error& error) {
    raise_os_error(error.code().value());
  }
}

/// Which SIGINT reaches the handler that Python has for it: the first. One within `double_ns_` of
/// it is the same wish; a later one ends the process at once, also where Python's main thread waits
/// in C and would not look.
class FirstInterrupt {
 public:
  static void install(double double_s) {
    struct sigaction found = {};
    sigaction(SIGINT, nullptr, &found);
    if (found.sa_handler == &on_interrupt || found.sa_handler == SIG_DFL ||
        found.sa_handler == SIG_IGN) {
      return;
    }
    python_handler_.store(found.sa_handler, std::memory_order_relaxed);  // sigaction orders
    double_ns_.store(static_cast<std::uint64_t>(double_s * 1e9), std::memory_order_relaxed);
    first_ns_.store(0, std::memory_order_relaxed);
    found.sa_handler = &on_interrupt;
    sigaction(SIGINT, &found, nullptr);
  }

 private:
  static void on_interrupt(int number) {
    const int error = errno;
    const std::uint64_t now = now_ns();
    std::uint64_t first = 0;
    if (first_ns_.compare_exchange_strong(first, now, std::memory_order_relaxed)) {
      python_handler_.load(std::memory_order_relaxed)(number);
    } else if (now >= first + double_ns_.load(std::memory_order_relaxed)) {
      std::signal(number, SIG_DFL);
      std::raise(number);  // is delivered when this handler returns
    }
    errno = error;
  }

  static inline std::atomic<void (*)(int)> python_handler_ = nullptr;
  static inline std::atomic<std::uint64_t> double_ns_ = 0;
  static inline std::atomic<std::uint64_t> first_ns_ = 0;  ///< Relaxed: publishes nothing else.
};

py::dict worker_counters(const Segment& segment, std::uint32_t worker) {
  const WorkerBlock& block = segment.worker(worker);
  const auto get = [](const std::atomic<std::uint64_t>& c) {
    return c.load(std::memory_order_relaxed);
  };
  py::dict d;
  d["pid"] = identity_pid(get(block.owner));
  d["units"] = get(block.units);
  d["rounds"] = get(block.rounds);
  d["decisions"] = get(block.decisions);
  d["simulations"] = get(block.simulations);
  d["terminals"] = get(block.terminals);
  d["rows"] = get(block.rows);
  d["busy_ns"] = get(block.busy_ns);
  d["wait_ns"] = get(block.wait_ns);
  d["lanes"] = get(block.lanes);
  d["progress"] = get(block.progress);
  return d;
}

py::dict server_counters(const Segment& segment, std::uint32_t server) {
  const ServerBlock& block = segment.server(server);
  const auto get = [](const std::atomic<std::uint64_t>& c) {
    return c.load(std::memory_order_relaxed);
  };
  py::dict d;
  d["batches"] = get(block.batches);
  d["rows"] = get(block.rows);
  d["busy_ns"] = get(block.busy_ns);
  d["wait_ns"] = get(block.wait_ns);
  d["version"] = get(block.version);
  d["refused"] = get(block.refused);
  std::vector<std::uint64_t> histogram;
  for (const auto& bin : block.histogram) histogram.push_back(get(bin));
  d["histogram"] = histogram;
  std::vector<std::uint64_t> waits;
  for (const auto& bin : block.waits) waits.push_back(get(bin));
  d["waits"] = waits;
  return d;
}

std::vector<std::string> slot_states(const Segment& segment, std::uint32_t worker) {
  std::vector<std::string> states;
  for (std::uint32_t s = 0; s < segment.sizes().slots_per_worker; ++s) {
    const SlotWord word{segment.worker(worker).words[s].load(std::memory_order_acquire)};
    states.emplace_back(is_state(word.state())
                            ? kStateNames[static_cast<int>(word.state())]
                            : "state " + std::to_string(static_cast<int>(word.state())));
  }
  return states;
}

/// A new, empty file in memory without a name; `name` is what /proc shows. The system call itself:
/// Python has os.memfd_create only where it was built against glibc 2.27, which conda's was not.
int memory_file(const std::string& name) {
  constexpr unsigned kFlags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  constexpr unsigned kNoExec = 8;  // MFD_NOEXEC_SEAL: from Linux 6.3 on it may be demanded
  long fd = syscall(SYS_memfd_create, name.c_str(), kFlags | kNoExec);
  if (fd < 0 && errno == EINVAL) fd = syscall(SYS_memfd_create, name.c_str(), kFlags);
  if (fd < 0) raise_os_error(errno);
  return static_cast<int>(fd);
}

/// `body(port, slot)` as a function that looks at `slot` first.
template <class Body>
auto with_slot(Body body) {
  return [body](WorkerPort& port, std::uint32_t slot) {
    check_index("slot", slot, port.num_slots());
    return sound([&] { return body(port, slot); });
  };
}

/// A view of shared memory that keeps the segment mapped.
template <class T>
py::array view(T* data, std::vector<py::ssize_t> shape, const py::object& owner) {
  return py::array_t<T>(std::move(shape), data, owner);
}

class PyServerPort {
 public:
  PyServerPort(Segment& segment, std::uint32_t server, std::uint32_t epoch, Spin spin, Peers peers)
      : segment_(segment), port_(segment, server, epoch, spin, peers) {}

  py::tuple gather(const py::array& states, py::array_t<std::uint64_t, py::array::c_style> masks,
                   std::uint32_t limit_rows, double timeout_ms, bool other_in_flight,
                   double wait_ms, double spin_us) {
    const ServerPort::Staging staging = checked_staging(states, masks, limit_rows);
    const auto gathered = translated([&] {
      const GilRelease release;
      return port_.gather(staging,
                          {.limit_rows = limit_rows,
                           .timeout_ns = ns_of_ms(timeout_ms),
                           .other_in_flight = other_in_flight},
                          ns_of_ms(wait_ms), ns_of_ms(spin_us / 1000.0));
    });
    return py::make_tuple(gathered.batch, gathered.rows);
  }

  std::vector<std::pair<std::uint64_t, std::string>> scatter(
      std::uint64_t batch, const py::array_t<float, py::array::c_style>& policies,
      const py::array_t<float, py::array::c_style>& values, std::uint32_t version,
      bool check_finite) {
    const SegmentSizes& sizes = segment_.sizes();
    const std::uint32_t rows = port_.num_rows(batch);
    check_answer_rows("policies", policies, rows, sizes.action_dim);
    check_answer_rows("values", values, rows, sizes.value_dim);
    return translated([&] {
      const float* policy = policies.data();
      const float* value = values.data();
      const GilRelease release;
      std::vector<std::pair<std::uint64_t, std::string>> refused;
      for (auto& each : port_.scatter(batch, policy, value, version, check_finite)) {
        refused.emplace_back(each.batch, std::move(each.message));
      }
      return refused;
    });
  }

  void fail(std::uint64_t batch, const std::string& message, std::uint32_t version) {
    port_.fail(batch, message, version);
  }

  std::vector<std::uint64_t> split(std::uint64_t batch) { return port_.split(batch); }

  std::uint32_t refill(std::uint64_t batch, const py::array& states,
                       py::array_t<std::uint64_t, py::array::c_style> masks,
                       std::uint32_t limit_rows) {
    const ServerPort::Staging staging = checked_staging(states, masks, limit_rows);
    check_range("rows of the batch", port_.num_rows(batch), 1, limit_rows);
    return port_.refill(batch, staging);
  }

 private:
  /// An array of whole rows, as many as the batch has or more.
  static void check_answer_rows(const char* what, const py::array& array, std::uint32_t rows,
                                std::uint32_t width) {
    const auto columns = static_cast<py::ssize_t>(width);
    const bool whole = array.ndim() == 2 && array.shape(1) == columns;
    if (!whole || array.shape(0) < static_cast<py::ssize_t>(rows)) {
      throw py::value_error(std::string(what) + " has the shape " +
                            py::str(array.attr("shape")).cast<std::string>() +
                            "; the batch takes [" + std::to_string(rows) + " or more, " +
                            std::to_string(width) + "]");
    }
  }

  ServerPort::Staging checked_staging(const py::array& states,
                                      py::array_t<std::uint64_t, py::array::c_style>& masks,
                                      std::uint32_t limit_rows) const {
    const SegmentSizes& sizes = segment_.sizes();
    const char kind = sizes.wire == Wire::kFloat16 ? 'e' : 'f';  // numpy's letters
    if (states.dtype().char_() != kind || (states.flags() & py::array::c_style) == 0 ||
        !states.writeable()) {
      throw py::value_error("states is " + py::str(states.dtype()).cast<std::string>() +
                            "; wanted: a writable array in C order of " +
                            (kind == 'e' ? "float16" : "float32"));
    }
    const auto capacity = static_cast<std::size_t>(states.nbytes()) / sizes.state_bytes();
    if (limit_rows == 0 || limit_rows > capacity ||
        static_cast<std::size_t>(masks.size()) < limit_rows * std::size_t{sizes.mask_words()}) {
      throw py::value_error("limit_rows is " + std::to_string(limit_rows) + "; the staging holds " +
                            std::to_string(capacity) + " rows");
    }
    return {.states = static_cast<std::byte*>(const_cast<void*>(states.data())),
            .masks = masks.mutable_data()};
  }

  Segment& segment_;
  ServerPort port_;
};

using Bools = py::array_t<bool, py::array::c_style>;

/// One request in flight. Arrays are C-contiguous and of the service's types; Python sees to that.
class PyRequestPort {
 public:
  PyRequestPort(Segment& segment, std::uint32_t block, std::uint64_t identity)
      : segment_(segment), port_(segment, block, identity) {}

  RequestPort& port() { return port_; }

  void submit(const py::array& states, const Bools& masks) {
    const std::uint32_t rows = checked_rows(states, masks);
    translated([&] {
      port_.submit(static_cast<const std::byte*>(states.data()),
                   reinterpret_cast<const std::uint8_t*>(masks.data()), rows);
      return 0;
    });
  }

  /// submit, wait at most 100 ms, take: without the GIL. None where there is no answer yet.
  py::object call(const py::array& states, const Bools& masks, double timeout_ms, double spin_us) {
    const std::uint32_t rows = checked_rows(states, masks);
    py::tuple out = new_answers(rows, states.ndim() == 1);
    const auto* state_bytes = static_cast<const std::byte*>(states.data());
    const auto* mask_bytes = reinterpret_cast<const std::uint8_t*>(masks.data());
    float* policies = data_of(out[0]);
    float* values = data_of(out[1]);
    std::uint32_t version = 0;
    const bool answered = translated([&] {
      const GilRelease release;
      port_.submit(state_bytes, mask_bytes, rows);
      if (!port_.wait(ns_of_ms(timeout_ms), ns_of_ms(spin_us / 1000.0))) return false;
      version = port_.take(policies, values, rows);
      return true;
    });
    if (!answered) return py::none();
    out[2] = py::int_(version);
    return out;
  }

  bool wait(double timeout_ms, double spin_us) {
    return translated([&] {
      const GilRelease release;
      return port_.wait(ns_of_ms(timeout_ms), ns_of_ms(spin_us / 1000.0));
    });
  }

  py::tuple take(std::uint32_t rows, bool single) {
    check_rows(rows);
    py::tuple out = new_answers(rows, single);
    out[2] =
        py::int_(translated([&] { return port_.take(data_of(out[0]), data_of(out[1]), rows); }));
    return out;
  }

  void publish(std::uint32_t rows) {
    check_rows(rows);
    translated([&] { return port_.publish(rows), 0; });
  }

 private:
  static float* data_of(const py::object& array) {
    return static_cast<float*>(py::reinterpret_borrow<py::array>(array).mutable_data());
  }

  void check_rows(std::size_t rows) const {
    if (rows == 0 || rows > segment_.sizes().rows_per_slot) {
      throw py::value_error("rows is " + std::to_string(rows) + "; allowed: 1.." +
                            std::to_string(segment_.sizes().rows_per_slot));
    }
  }

  std::uint32_t checked_rows(const py::array& states, const Bools& masks) const {
    const SegmentSizes& sizes = segment_.sizes();
    const std::size_t rows = states.ndim() == 1 ? 1 : static_cast<std::size_t>(states.shape(0));
    check_rows(rows);
    if (static_cast<std::size_t>(states.nbytes()) != rows * sizes.state_bytes() ||
        static_cast<std::size_t>(masks.size()) != rows * sizes.action_dim ||
        (states.flags() & py::array::c_style) == 0) {
      throw py::value_error("states or masks are not arrays of this service");
    }
    return static_cast<std::uint32_t>(rows);
  }

  py::tuple new_answers(std::uint32_t rows, bool single) const {
    const auto action_dim = static_cast<py::ssize_t>(segment_.sizes().action_dim);
    const auto value_dim = static_cast<py::ssize_t>(segment_.sizes().value_dim);
    const auto num_rows = static_cast<py::ssize_t>(rows);
    using Shape = std::vector<py::ssize_t>;
    py::tuple out(3);
    out[0] = py::array_t<float>(single ? Shape{action_dim} : Shape{num_rows, action_dim});
    out[1] = py::array_t<float>(single ? Shape{value_dim} : Shape{num_rows, value_dim});
    return out;
  }

  Segment& segment_;
  RequestPort port_;
};

void bind_segment(py::module_& m) {
  m.attr("MAX_ROWS_PER_SLOT") = kMaxRowsPerSlot;
  m.attr("MAX_SLOTS_PER_WORKER") = kMaxSlotsPerWorker;
  m.attr("MAX_WORKERS") = kMaxWorkers;
  const py::arg servers("servers"), workers("workers"), slots("slots"), rows("rows");
  m.def(
      "segment_bytes",
      [](std::uint32_t num_servers, std::uint32_t num_workers, std::uint32_t num_slots,
         std::uint32_t num_rows, std::uint32_t state_dim, std::uint32_t action_dim,
         std::uint32_t value_dim, const std::string& wire) {
        return SegmentLayout(make_sizes(num_servers, num_workers, num_slots, num_rows, state_dim,
                                        action_dim, value_dim, wire))
            .total;
      },
      servers, workers, slots, rows, py::arg("state_dim") = kNumFeatures,
      py::arg("action_dim") = kNumActions, py::arg("value_dim") = 1, py::arg("wire") = "float16");

  m.def("memory_file", &memory_file, py::arg("name"));

  py::class_<Segment>(m, "Segment", "A mapped segment of shared memory.")
      .def_static(
          "create",
          [](int fd, std::uint32_t num_servers, std::uint32_t num_workers, std::uint32_t num_slots,
             std::uint32_t num_rows, std::uint32_t state_dim, std::uint32_t action_dim,
             std::uint32_t value_dim, const std::string& wire, std::uint64_t run_id) {
            const SegmentSizes sizes = make_sizes(num_servers, num_workers, num_slots, num_rows,
                                                  state_dim, action_dim, value_dim, wire);
            const std::size_t wanted = SegmentLayout(sizes).total;
            struct stat status;
            if (fstat(fd, &status) != 0 || static_cast<std::size_t>(status.st_size) < wanted) {
              throw py::value_error("fd " + std::to_string(fd) + " is no file of the " +
                                    std::to_string(wanted) + " bytes that the segment takes");
            }
            return translated([&] { return Segment::create(fd, sizes, run_id); });
          },
          py::arg("fd"), servers, workers, slots, rows, py::arg("state_dim") = kNumFeatures,
          py::arg("action_dim") = kNumActions, py::arg("value_dim") = 1,
          py::arg("wire") = "float16", py::arg("run_id") = 0)
      .def_static(
          "attach", [](int fd) { return translated([&] { return Segment::attach(fd); }); },
          py::arg("fd"))
      .def_property_readonly("num_servers", [](const Segment& s) { return s.sizes().num_servers; })
      .def_property_readonly("num_workers", [](const Segment& s) { return s.sizes().num_workers; })
      .def_property_readonly("slots_per_worker",
                             [](const Segment& s) { return s.sizes().slots_per_worker; })
      .def_property_readonly("rows_per_slot",
                             [](const Segment& s) { return s.sizes().rows_per_slot; })
      .def_property_readonly("state_dim", [](const Segment& s) { return s.sizes().state_dim; })
      .def_property_readonly("action_dim", [](const Segment& s) { return s.sizes().action_dim; })
      .def_property_readonly("value_dim", [](const Segment& s) { return s.sizes().value_dim; })
      .def_property_readonly(
          "wire",
          [](const Segment& s) { return s.sizes().wire == Wire::kFloat16 ? "float16" : "float32"; })
      .def_property_readonly("bytes", [](const Segment& s) { return s.layout().total; })
      .def(
          "check_finite",
          [](const Segment& s, const py::array& states) {
            if (static_cast<std::size_t>(states.nbytes()) % s.sizes().state_bytes() != 0 ||
                (states.flags() & py::array::c_style) == 0) {
              throw py::value_error("states is not an array of this service");
            }
            check_finite(static_cast<const std::byte*>(states.data()),
                         static_cast<std::size_t>(states.nbytes()) / s.sizes().state_bytes(),
                         s.sizes());
          },
          py::arg("states"))
      .def(
          "worker_counters",
          [](const Segment& s, std::uint32_t w) {
            check_index("worker", w, s.sizes().num_workers);
            return worker_counters(s, w);
          },
          py::arg("worker"))
      .def(
          "server_counters",
          [](const Segment& s, std::uint32_t i) {
            check_index("server", i, s.sizes().num_servers);
            return server_counters(s, i);
          },
          py::arg("server"))
      .def(
          "slot_states",
          [](const Segment& s, std::uint32_t w) {
            check_index("worker", w, s.sizes().num_workers);
            return slot_states(s, w);
          },
          py::arg("worker"))
      .def(
          "playing_unit",
          [](const Segment& s, std::uint32_t w) -> std::optional<std::uint64_t> {
            check_index("worker", w, s.sizes().num_workers);
            const std::uint64_t playing = s.worker(w).playing.load(std::memory_order_relaxed);
            return playing == 0 ? std::nullopt : std::optional(playing - 1);
          },
          py::arg("worker"))
      .def(
          "waits_for_servers",
          [](const Segment& s, std::uint32_t w) {
            check_index("worker", w, s.sizes().num_workers);
            return waits_for_servers(s, w);
          },
          py::arg("worker"))
      .def(
          "reclaim_worker",
          [](const Segment& s, std::uint32_t w) {
            check_index("worker", w, s.sizes().num_workers);
            reclaim_worker(s, w);
          },
          py::arg("worker"))
      .def(
          "reclaim_server",
          [](const Segment& s, std::uint32_t i) {
            check_index("server", i, s.sizes().num_servers);
            reclaim_server(s, i);
          },
          py::arg("server"))
      .def(
          "held_slots",
          [](const Segment& s, std::uint32_t i) {
            check_index("server", i, s.sizes().num_servers);
            std::vector<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>> held;
            for (const HeldSlot& one : held_slots(s, i)) {
              held.emplace_back(one.worker, one.slot, one.generation);
            }
            return held;
          },
          py::arg("server"))
      .def(
          "open_service",
          [](Segment& s, std::uint64_t identity) {
            return translated([&] { return open_service(s, identity); });
          },
          py::arg("identity"))
      .def("close_service", &close_service)
      .def_property_readonly(
          "service_owner",
          [](const Segment& s) { return s.server(0).owner.load(std::memory_order_acquire); })
      .def_property_readonly(
          "service_closed",
          [](const Segment& s) { return s.server(0).closed.load(std::memory_order_acquire) != 0; })
      .def("owners",
           [](const Segment& s) {
             std::vector<std::uint64_t> owners;
             for (std::uint32_t w = 0; w < s.sizes().num_workers; ++w) {
               const std::uint64_t owner =
                   s.worker(w).owner.load(std::memory_order_acquire) & ~kResting;
               if (owner != 0) owners.push_back(owner);
             }
             return owners;
           })
      .def("reap_client", &reap_client, py::arg("identity"));

  py::tuple edges(kWaitBins);
  for (std::uint32_t bin = 0; bin < kWaitBins; ++bin) edges[bin] = wait_bin_ns(bin);
  m.attr("WAIT_BINS_NS") = edges;
  py::tuple sizes(kHistogramBins);
  for (std::uint32_t bin = 0; bin < kHistogramBins; ++bin) sizes[bin] = batch_bin_rows(bin);
  m.attr("BATCH_BINS_ROWS") = sizes;
  py::tuple states(std::size(kStateNames));
  for (std::size_t s = 0; s < std::size(kStateNames); ++s) states[s] = kStateNames[s];
  m.attr("SLOT_STATES") = states;
}

void bind_ports(py::module_& m) {
  const py::arg slot_arg("slot");
  py::class_<WorkerPort>(m, "WorkerPort", "A worker's side of its slots, for tests and clients.")
      .def(py::init([](Segment& segment, std::uint32_t worker) {
             check_index("worker", worker, segment.sizes().num_workers);
             return std::make_unique<WorkerPort>(segment, worker);
           }),
           py::arg("segment"), py::arg("worker"), py::keep_alive<1, 2>())
      .def("begin", with_slot([](WorkerPort& p, std::uint32_t slot) { return p.begin(slot); }),
           slot_arg)
      .def(
          "publish",
          [](WorkerPort& p, std::uint32_t slot, std::uint32_t num_rows) {
            check_index("slot", slot, p.num_slots());
            check_range("rows", num_rows, 0, p.rows_per_slot());
            sound([&] { p.publish(slot, num_rows); });
          },
          slot_arg, py::arg("rows"))
      .def("answered",
           with_slot([](WorkerPort& p, std::uint32_t slot) { return p.answered(slot); }), slot_arg)
      .def("release", with_slot([](WorkerPort& p, std::uint32_t slot) { p.release(slot); }),
           slot_arg)
      .def("cancel", with_slot([](WorkerPort& p, std::uint32_t slot) { p.cancel(slot); }), slot_arg)
      .def("generation",
           with_slot([](WorkerPort& p, std::uint32_t slot) { return p.load(slot).generation(); }),
           slot_arg)
      .def("version", with_slot([](WorkerPort& p, std::uint32_t slot) {
             return p.rows(slot).header->version;
           }),
           slot_arg)
      .def(
          "wait",
          [](WorkerPort& p, std::uint32_t slot_bits, double timeout_ms, double spin_us) {
            const GilRelease release;
            return p.wait(slot_bits, ns_of_ms(timeout_ms), ns_of_ms(spin_us / 1000.0));
          },
          py::arg("slots"), py::arg("timeout_ms") = 100.0, py::arg("spin_us") = 0.0);

  py::class_<PyRequestPort>(m, "RequestPort",
                            "A client's side of one block: one request in flight.")
      .def_static(
          "claim",
          [](Segment& segment, std::uint64_t identity) -> std::unique_ptr<PyRequestPort> {
            const std::uint32_t block = RequestPort::claim(segment, identity);
            if (block == RequestPort::kNone) return nullptr;
            return std::make_unique<PyRequestPort>(segment, block, identity);
          },
          py::arg("segment"), py::arg("identity"), py::keep_alive<0, 1>())
      .def("submit", &PyRequestPort::submit, py::arg("states"), py::arg("masks"))
      .def("call", &PyRequestPort::call, py::arg("states"), py::arg("masks"), py::arg("timeout_ms"),
           py::arg("spin_us"))
      .def("wait", &PyRequestPort::wait, py::arg("timeout_ms"), py::arg("spin_us"))
      .def("take", &PyRequestPort::take, py::arg("rows"), py::arg("single") = false)
      .def("rest", [](PyRequestPort& p) { return p.port().rest(); })
      .def("resume", [](PyRequestPort& p) { return p.port().resume(); })
      .def("publish", &PyRequestPort::publish, py::arg("rows"))
      .def("check_answer",
           [](PyRequestPort& p) { translated([&] { return p.port().check_answer(), 0; }); })
      .def("release", [](PyRequestPort& p) { translated([&] { return p.port().release(), 0; }); })
      .def("cancel", [](PyRequestPort& p) { return p.port().cancel(); })
      .def_property_readonly(
          "answered",
          [](PyRequestPort& p) { return translated([&] { return p.port().answered(); }); })
      .def_property_readonly("block", [](PyRequestPort& p) { return p.port().block(); })
      .def("close", [](PyRequestPort& p) { p.port().close(); })
      .def_property_readonly("version", [](PyRequestPort& p) { return p.port().version(); });

  py::class_<PyServerPort>(m, "ServerPort", "A server's side of the slots.")
      .def(py::init([](Segment& segment, std::uint32_t server, std::uint32_t epoch,
                       bool adaptive_spin, bool clients) {
             check_index("server", server, segment.sizes().num_servers);
             return std::make_unique<PyServerPort>(segment, server, epoch,
                                                   adaptive_spin ? Spin::kAdaptive : Spin::kFixed,
                                                   clients ? Peers::kClients : Peers::kWorkers);
           }),
           py::arg("segment"), py::arg("server"), py::arg("epoch"),
           py::arg("adaptive_spin") = false, py::arg("clients") = false, py::keep_alive<1, 2>())
      .def("gather", &PyServerPort::gather, py::arg("states").noconvert(),
           py::arg("masks").noconvert(), py::arg("limit_rows"), py::arg("timeout_ms") = 2.0,
           py::arg("other_in_flight") = false, py::arg("wait_ms") = 100.0, py::arg("spin_us") = 0.0)
      .def("scatter", &PyServerPort::scatter, py::arg("batch"), py::arg("policies").noconvert(),
           py::arg("values").noconvert(), py::arg("version"), py::arg("check_finite") = false)
      .def("fail", &PyServerPort::fail, py::arg("batch"), py::arg("message"), py::arg("version"))
      .def("split", &PyServerPort::split, py::arg("batch"))
      .def("refill", &PyServerPort::refill, py::arg("batch"), py::arg("states").noconvert(),
           py::arg("masks").noconvert(), py::arg("limit_rows"));
}

void bind_masks(py::module_& m) {
  m.def("num_mask_words", &num_mask_words, py::arg("actions"));
  m.def(
      "pack_masks",
      [](const Bools& masks) {
        if (masks.ndim() != 2) throw py::value_error("masks must have 2 dimensions");
        const auto actions = static_cast<std::uint32_t>(masks.shape(1));
        py::array_t<std::uint64_t> words(
            {masks.shape(0), static_cast<py::ssize_t>(num_mask_words(actions))});
        for (py::ssize_t r = 0; r < masks.shape(0); ++r) {
          pack_mask(reinterpret_cast<const std::uint8_t*>(masks.data(r, 0)), actions,
                    words.mutable_data(r, 0));
        }
        return words;
      },
      py::arg("masks"));
  m.def(
      "unpack_masks",
      [](const py::array_t<std::uint64_t, py::array::c_style>& words, Bools masks) {
        if (words.ndim() != 2 || masks.ndim() != 2 || masks.shape(0) != words.shape(0) ||
            words.shape(1) != num_mask_words(static_cast<std::uint32_t>(masks.shape(1)))) {
          throw py::value_error("words and masks differ in rows or actions");
        }
        for (py::ssize_t r = 0; r < masks.shape(0); ++r) {
          unpack_mask(words.data(r, 0), static_cast<std::uint32_t>(masks.shape(1)),
                      reinterpret_cast<std::uint8_t*>(masks.mutable_data(r, 0)));
        }
      },
      py::arg("words").noconvert(), py::arg("masks").noconvert());
}

void bind_slots_for_tests(py::module_& m) {
  m.def(
      "overwrite_slot",
      [](Segment& segment, std::uint32_t worker, std::uint32_t slot,
         std::optional<std::uint64_t> word, std::optional<std::uint32_t> rows,
         std::optional<std::uint64_t> request_ns) {
        check_index("worker", worker, segment.sizes().num_workers);
        check_index("slot", slot, segment.sizes().slots_per_worker);
        SlotHeader& header = segment.slot_header(worker, slot);
        if (rows) header.num_rows = *rows;
        if (request_ns) header.request_ns = *request_ns;
        if (word) segment.worker(worker).words[slot].store(*word, std::memory_order_release);
      },
      py::arg("segment"), py::arg("worker"), py::arg("slot"), py::arg("word") = py::none(),
      py::arg("rows") = py::none(), py::arg("request_ns") = py::none(),
      "What a stray write would do, for tests.");

  m.def(
      "slot_views",
      [](const py::object& owner, std::uint32_t worker, std::uint32_t slot) {
        const auto& segment = owner.cast<const Segment&>();
        const SegmentSizes& sizes = segment.sizes();
        check_index("worker", worker, sizes.num_workers);
        check_index("slot", slot, sizes.slots_per_worker);
        const SlotRows at = slot_rows(segment, worker, slot);
        const auto num_rows = static_cast<py::ssize_t>(sizes.rows_per_slot);
        const auto width = [](std::uint32_t dim) { return static_cast<py::ssize_t>(dim); };
        py::object states = sizes.wire == Wire::kFloat16
                                ? view(reinterpret_cast<std::uint16_t*>(at.states),
                                       {num_rows, width(sizes.state_dim)}, owner)
                                      .attr("view")("float16")
                                : py::object(view(reinterpret_cast<float*>(at.states),
                                                  {num_rows, width(sizes.state_dim)}, owner));
        return py::make_tuple(states, view(at.masks, {num_rows, width(sizes.mask_words())}, owner),
                              view(at.policies, {num_rows, width(sizes.action_dim)}, owner),
                              view(at.values, {num_rows, width(sizes.value_dim)}, owner));
      },
      py::arg("segment"), py::arg("worker"), py::arg("slot"));
}

void bind_processes(py::module_& m) {
  m.def("own_identity", &own_identity);
  m.def("identity_pid", &identity_pid, py::arg("identity"));
  m.def(
      "life_of",
      [](std::uint64_t identity) {
        const Life life = life_of(identity);
        return life == Life::kAlive ? "alive" : life == Life::kDead ? "dead" : "unknown";
      },
      py::arg("identity"));
  m.def(
      "die_with_parent",
      [](int parent_pid, int signal) {
        prctl(PR_SET_PDEATHSIG, signal);
        if (getppid() != parent_pid) _exit(1);  // it died before the line above
      },
      py::arg("parent_pid"), py::arg("signal") = SIGKILL);
  m.def("merge_double_interrupts", &FirstInterrupt::install, py::arg("double_s"),
        "Python's handler of SIGINT gets the first; one within so many seconds is no further wish, "
        "a later one ends the process.");
}

}  // namespace

void bind_shm(py::module_& m) {
  bind_segment(m);
  bind_ports(m);
  bind_masks(m);
  bind_slots_for_tests(m);
  bind_processes(m);
}

}  // namespace shmzero
