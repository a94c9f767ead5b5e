"""What each setting of env/perf.sh brings to whom it is for. Run by bench.py, within `ablate`.

The engine sets the threads of its processes itself; the thread counts are for somebody's own torch
programs: here plain loops, one process a core, each with the network `plan` on 64 rows, eagerly. Allocators
are for the engine. `python -m tools.benchmarks.perf SECONDS` is one such loop. Read next: env/perf.sh.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from shmzero.errors import WorkerDied
from shmzero.machine import cores
from shmzero.nets.config import NETS
from tools.benchmarks.measure import Result, interleaved, ratio, real_rows, windowed

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WITHOUT = {"OMP_NUM_THREADS": THREADS[:1], "MKL_NUM_THREADS": THREADS[1:], "either of them": THREADS}
"""Torch takes the one where the other is missing."""
ALLOCATORS = {"PYTORCH_ALLOC_CONF": "PYTORCH_ALLOC_CONF", "jemalloc": "LD_PRELOAD"}
"""Settings that the engine's processes see, and their variables."""
ROWS = 64


def loops_rows_per_s(without: Sequence[str], seconds: float) -> float:
    """Rows/s of all the loops together, with the thread counts of env/perf.sh but for `without`."""
    environment = os.environ | dict.fromkeys(THREADS, "1")
    for name in without:
        del environment[name]
    command = [sys.executable, "-m", "tools.benchmarks.perf", str(seconds)]
    loops = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         start_new_session=True)
        for _ in range(cores())
    ]  # fmt: skip
    try:
        for loop in loops:
            assert loop.stdout is not None
            loop.stdout.readline()
        for loop in loops:
            assert loop.stdin is not None
            loop.stdin.write("go\n")
            loop.stdin.flush()
        said = [loop.communicate()[0] for loop in loops]
        if any(loop.returncode for loop in loops):
            raise WorkerDied("a plain torch loop ended with an error")
        return sum(map(float, said))
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def thread_costs(repeats: int, seconds: float) -> list[Result]:
    """What is left of the rate of plain torch loops without each thread count."""
    measured = interleaved(
        {"": partial(loops_rows_per_s, (), seconds)}
        | {name: partial(loops_rows_per_s, without, seconds) for name, without in WITHOUT.items()},
        repeats,
    )
    whole = measured.pop("")
    return [ratio(f"plain torch loops, one a core, without {name}", left, whole) for name, left in measured.items()]


def hidden_allocators(on_cuda: bool) -> tuple[dict[str, tuple[str, ...]], list[Result]]:
    """(variables to hide from an engine, by name of the result; what cannot be measured here, said)."""
    hidden: dict[str, tuple[str, ...]] = {}
    left: list[Result] = []
    for setting, variable in ALLOCATORS.items():
        name, value = f"without env/perf.sh's {setting}", os.environ.get(variable, "")
        if setting == "jemalloc" and "jemalloc" not in value:
            left.append(Result(name, "jemalloc: not found"))
        elif setting != "jemalloc" and not on_cuda:
            left.append(Result(name, "no CUDA device"))
        elif not value:
            left.append(Result(name, "not set"))
        else:
            hidden[name] = (variable,)
    return hidden, left


def main(seconds: float) -> None:
    """One plain loop: says when it is ready, begins when told to, prints its rows/s."""
    import torch

    from shmzero.game.masks import masks_of
    from shmzero.nets.blob_net import BlobNet

    features, words = real_rows(ROWS)
    net, states, masks = BlobNet(NETS["plan"]), torch.from_numpy(features).float(), torch.from_numpy(masks_of(words))

    def call() -> int:
        with torch.inference_mode():
            net.policy_value(states, masks)
        return ROWS

    call()
    print("ready", flush=True)
    sys.stdin.readline()
    print(windowed(call, seconds))


if __name__ == "__main__":
    main(float(sys.argv[1]))
