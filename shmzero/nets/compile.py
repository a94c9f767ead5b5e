"""Helper process: compiles the serving function, for batches of any size, into the on-disk cache.

It runs beside a server that serves eagerly meanwhile, and dies with it. It has one thread of ordinary priority, in a
session of its own, so that on busy cores as well the kernel gives it as much as any other thread: at a lower priority
it might never get done, and its seconds are spent once for all later runs. Of all the helpers of a cache folder one
runs at a time: it inherits the folder's lock from the server that starts it. What it keeps, Inductor's own files too,
goes to that folder, which this user alone can write to.
Read next: compiled.py, which starts it and loads what it makes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress

from shmzero import _core
from shmzero.nets.config import NetConfig

END_S = 5
"""How long the compilers may take to remove their temporary files after a SIGTERM."""


def leave(number: int, frame: object) -> None:
    """End the compilers, which remove their temporary files, then whatever is left of the group and this process."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda number, frame: os.killpg(0, signal.SIGKILL))
    signal.alarm(END_S)
    os.killpg(0, signal.SIGTERM)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """The process: its one argument is the spec, as JSON."""
    spec = json.loads(sys.argv[1])
    end_with(spec["parent_pid"])
    os.umask(0o077)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = spec["inductor"]
    # Older torch asks getpass for a user's name, also for one who has none, and does not use it.
    os.environ.setdefault("USERNAME", f"user {os.getuid()}")
    compile_package(NetConfig(**spec["net"]), spec["precision"], spec["values"], spec["device"])


def end_with(parent_pid: int) -> None:
    """Have this process and its compilers end when the parent does."""
    # They are of its process group, which ends as a whole. In a session of its own it also has a share of its own
    # where the kernel divides the cores among sessions.
    os.setsid()
    signal.signal(signal.SIGTERM, leave)
    _core.die_with_parent(parent_pid, signal.SIGTERM)


def compile_package(config: NetConfig, precision: str, values: bool, device: str) -> None:
    """Put the package of a serving function into the cache, whole or not at all."""
    import torch  # only now: it reads the environment

    from shmzero.nets.blob_net import BlobNet
    from shmzero.nets.compiled import MOST_ROWS, package_path
    from shmzero.nets.inference_net import InferenceNet

    class Exported(torch.nn.Module):
        """torch.export wants a module."""

        def __init__(self, function: InferenceNet) -> None:
            super().__init__()
            self.function = function

        def forward(
            self, features: torch.Tensor, masks: torch.Tensor, *weights: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return self.function(features, masks, *weights)

    torch.set_num_threads(1)
    function = InferenceNet(config, precision, values)
    weights = function.weights(BlobNet(config), device)
    features = torch.zeros(512, _core.NUM_FEATURES, dtype=torch.float16, device=device)
    masks = torch.ones(512, dtype=torch.int64, device=device)
    rows = {0: torch.export.Dim("rows", min=1, max=MOST_ROWS)}
    shapes = {"features": rows, "masks": rows, "weights": tuple({} for _ in weights)}
    path = package_path(function, device)
    part = path.with_name(f"part-{path.name}")  # written by the holder of the lock alone
    try:
        with torch.no_grad():
            exported = torch.export.export(Exported(function), (features, masks, *weights), dynamic_shapes=shapes)
            torch._inductor.aoti_compile_and_package(
                exported,
                package_path=str(part),
                # They take hundreds of megabytes, and pay only where many networks are compiled.
                inductor_configs={"aot_inductor.precompile_headers": False},
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
