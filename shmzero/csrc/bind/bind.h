// The parts of the Python module, one function a layer, and what they share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "game/cards.h"
#include "shm/shm_layout.h"

namespace shmzero {

struct PlaySettings;
struct SearchConfig;

void bind_arena(pybind11::module_& m);
void bind_echo(pybind11::module_& m);
void bind_game(pybind11::module_& m);
void bind_play(pybind11::module_& m);
void bind_search(pybind11::module_& m);
void bind_shm(pybind11::module_& m);
void bind_train(pybind11::module_& m);

/// Raises ValueError unless `value` is within low..high.
inline void check_range(const char* what, long long value, long long low, long long high) {
  if (value < low || value > high) {
    throw pybind11::value_error(std::string(what) + " is " + std::to_string(value) +
                                "; allowed: " + std::to_string(low) + ".." + std::to_string(high));
  }
}

inline void check_index(const char* what, std::uint32_t index, std::uint32_t size) {
  if (index >= size) {
    throw pybind11::value_error(std::string(what) + " is " + std::to_string(index) +
                                "; allowed: 0.." + std::to_string(size - 1));
  }
}

/// 0 for what is negative or no number; at most what any clock here will ever show.
inline std::uint64_t ns_of_ms(double ms) {
  return ms > 0.0 ? static_cast<std::uint64_t>(std::min(ms * 1e6, 1e18)) : 0;
}

/// Raises ValueError for what the core cannot run with. What is sensible, mcts/config.py and
/// mcts/play.py say.
void check_search(const SearchConfig& config);
void check_play(const PlaySettings& settings);

/// Gives up the GIL for its scope. Everything that runs for long uses this and not pybind11's own.
///
/// An interpreter that is ending gives its lock to nobody any more. From 3.14 on CPython lets a
/// daemon thread that asks for it wait for ever. Up to 3.13 it ends the thread by pthread_exit,
/// which glibc carries out by unwinding the stack: that may not leave a destructor, or the process
/// aborts, and it would release Python's objects without the lock. So the unwinding stops here, and
/// the thread waits for the end of the process, as under 3.14. To look first whether the
/// interpreter is ending would not do: most threads wait for the lock already when that begins.
class GilRelease {
 public:
  GilRelease() : thread_(PyEval_SaveThread()) {}
  ~GilRelease() {
    try {
      PyEval_RestoreThread(thread_);
    } catch (...) {  // C throws nothing: this is pthread_exit, which has to be rethrown or kept
      for (;;) pause();
    }
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* thread_;
};

/// Raises a class of shmzero.errors.
[[noreturn]] inline void raise_error(const char* name, const std::string& message) {
  const pybind11::object type = pybind11::module_::import("shmzero.errors").attr(name);
  PyErr_SetString(type.ptr(), message.c_str());
  throw pybind11::error_already_set();
}

/// For a worker, whose slots nobody takes away: a word that it did not leave is a stray one.
template <class Body>
auto sound(Body&& body) {
  try {
    return body();
  } catch (const CorruptSegment& error) {
    raise_error("SegmentCorrupt",
                std::string("something wrote over shared memory: ") + error.what());
  }
}

using Floats = pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>;

/// Raises ValueError unless an evaluator's answers fit so many rows.
inline void check_answers(const Floats& policies, const Floats& values, std::size_t rows) {
  const bool fits =
      policies.ndim() == 2 && policies.shape(0) == static_cast<pybind11::ssize_t>(rows) &&
      policies.shape(1) == kNumActions && values.size() == static_cast<pybind11::ssize_t>(rows);
  if (!fits) {
    const std::string many = std::to_string(rows);
    throw pybind11::value_error(
        "an evaluator answered " + many +
        " rows with policies or values of another shape; wanted: policies [" + many + ", " +
        std::to_string(kNumActions) + "], values [" + many + ", 1]");
  }
}

}  // namespace shmzero
