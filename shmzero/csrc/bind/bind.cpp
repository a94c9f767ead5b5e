// The Python module shmzero._core.
#include "bind/bind.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of shmzero: rules, search, slots.";
  shmzero::bind_game(m);
  shmzero::bind_search(m);
  shmzero::bind_shm(m);
  shmzero::bind_play(m);
  shmzero::bind_echo(m);
  shmzero::bind_arena(m);
  shmzero::bind_train(m);
#ifdef SHMZERO_SANITIZED  // by setup.py: not every sanitizer has a macro of its own
  m.attr("BUILD") = "sanitized";
#elif defined(NDEBUG)
  m.attr("BUILD") = "release";
#else
  m.attr("BUILD") = "debug";
#endif
}
