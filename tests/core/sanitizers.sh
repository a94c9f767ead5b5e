#!/usr/bin/env bash
# The core under AddressSanitizer and UndefinedBehaviorSanitizer, also for processors without byte shuffles; the slot
# protocol under ThreadSanitizer.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tar -C "$root" --exclude=__pycache__ --exclude='*.so' -c shmzero tests setup.py setup.cfg pyproject.toml README.md LICENSE |
  tar -C "$folder" -x
cd "$folder"
SHMZERO_SANITIZE=address,undefined python setup.py -q build_ext --inplace
export PYTHONPATH=$folder ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \
  python -m pytest -q -p no:cacheprovider tests/core/test_core_sanitized.py
if [ "$(uname -m)" = x86_64 ]; then
  for target in x86-64 x86-64-v2; do
    g++ -std=c++20 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined \
      -march=$target -I shmzero/csrc tests/core/play_hash.cpp -o play_hash
    ./play_hash >"$target"
  done
  cmp x86-64 x86-64-v2
fi
g++ -std=c++20 -O1 -g -fsanitize=thread -Wno-tsan -I shmzero/csrc tests/core/protocol_threads.cpp -o protocol -pthread -lrt
TSAN_OPTIONS=halt_on_error=1 ./protocol
