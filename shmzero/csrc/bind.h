// The parts of the Python module, one function a layer.
#pragma once

#include <pybind11/pybind11.h>

namespace shmzero {

void bind_arena(pybind11::module_& m);
void bind_echo(pybind11::module_& m);
void bind_game(pybind11::module_& m);
void bind_search(pybind11::module_& m);
void bind_shm(pybind11::module_& m);
void bind_train(pybind11::module_& m);

/// Raises a class of shmzero.errors.
[[noreturn]] inline void raise_error(const char* name, const std::string& message) {
  const pybind11::object type = pybind11::module_::import("shmzero.errors").attr(name);
  PyErr_SetString(type.ptr(), message.c_str());
  throw pybind11::error_already_set();
}

}  // namespace shmzero
