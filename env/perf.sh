# Source this (bash or zsh): process settings that the engine runs best with. `shmzero_perf_undo` takes
# them back. Leaves alone what is set already; sourcing it twice changes nothing.

shmzero_perf_set() {
  # shmzero_perf_set NAME VALUE: exports it unless it is set, and remembers that it was us.
  eval "[ -n \"\${$1+set}\" ]" && return 0
  export "$1=$2"
  SHMZERO_PERF_NAMES="${SHMZERO_PERF_NAMES:-} $1"
  SHMZERO_PERF_SAID="${SHMZERO_PERF_SAID:-} $1=$2"
}

shmzero_perf_undo() {
  local name
  for name in $(printf '%s' "${SHMZERO_PERF_NAMES:-}"); do unset "$name"; done
  unset SHMZERO_PERF_NAMES
}

SHMZERO_PERF_SAID=""
shmzero_perf_set OMP_NUM_THREADS 1
shmzero_perf_set MKL_NUM_THREADS 1
shmzero_perf_set PYTORCH_ALLOC_CONF expandable_segments:True
# Preloading is left to those who have it: only if the loader knows a jemalloc.
SHMZERO_JEMALLOC="$( (ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null) | sed -n 's/.*libjemalloc\.so\.2.* => //p' | head -n 1)"
[ -n "$SHMZERO_JEMALLOC" ] && shmzero_perf_set LD_PRELOAD "$SHMZERO_JEMALLOC"
if [ -t 2 ] && [ -n "$SHMZERO_PERF_SAID" ]; then
  printf 'perf.sh set:%s\n' "$SHMZERO_PERF_SAID" >&2
  [ -n "$SHMZERO_JEMALLOC" ] || printf 'perf.sh: no jemalloc found (Debian: apt-get install libjemalloc2)\n' >&2
fi
unset SHMZERO_PERF_SAID SHMZERO_JEMALLOC
