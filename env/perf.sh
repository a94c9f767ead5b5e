# Source this (bash or zsh): process settings that torch programs run best with. Says what it sets, leaves
# alone what is set already; sourcing it twice changes nothing. `shmzero_perf_undo` takes back what is still
# as it was set here. SHMZERO_PERF_QUIET=1 keeps it from saying anything.

shmzero_perf_set() {
  # shmzero_perf_set NAME VALUE: exports it unless it is set, and remembers that it was us.
  eval "[ -n \"\${$1+set}\" ]" && return 0
  export "$1=$2"
  eval "SHMZERO_PERF_SET_$1=\$2"
  SHMZERO_PERF_NAMES="${SHMZERO_PERF_NAMES:-} $1"
  SHMZERO_PERF_SAID="${SHMZERO_PERF_SAID:-} $1=$2"
}

shmzero_perf_undo() {
  local name
  for name in $(printf '%s' "${SHMZERO_PERF_NAMES:-}"); do
    eval "[ \"\${$name-}\" = \"\${SHMZERO_PERF_SET_$name-}\" ]" && unset "$name" # else somebody else's by now
    unset "SHMZERO_PERF_SET_$name"
  done
  unset SHMZERO_PERF_NAMES
}

shmzero_perf_jemalloc() {
  # Preloading is left to those who have it: the path of a jemalloc that the loader knows, or nothing.
  (PATH="$PATH:/usr/sbin:/sbin"; ldconfig -p 2>/dev/null) |
    sed -n '/libjemalloc\.so\.2.* => /{s/.* => //p;q;}' || true
}

SHMZERO_PERF_SAID=""
shmzero_perf_set OMP_NUM_THREADS 1
shmzero_perf_set MKL_NUM_THREADS 1
shmzero_perf_set PYTORCH_ALLOC_CONF expandable_segments:True
SHMZERO_JEMALLOC="$(shmzero_perf_jemalloc)"
[ -n "$SHMZERO_JEMALLOC" ] && shmzero_perf_set LD_PRELOAD "$SHMZERO_JEMALLOC"
if [ -z "${SHMZERO_PERF_QUIET:-}" ] && [ -n "$SHMZERO_PERF_SAID" ]; then
  printf 'perf.sh set:%s\n' "$SHMZERO_PERF_SAID" >&2
  [ -n "$SHMZERO_JEMALLOC" ] || printf 'perf.sh: jemalloc: not found (Debian: apt-get install libjemalloc2)\n' >&2
fi
unset SHMZERO_PERF_SAID SHMZERO_JEMALLOC
