"""Helper process: compiles the serving function, for batches of any size, into the on-disk cache.

Runs at low priority beside a server that serves eagerly meanwhile, one at a time, and dies
with it. All that it writes, Inductor's own files too, goes to the cache folder, which this user alone can
write to. Read next: net_device.py, which loads what this makes.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys

from shmzero import _core


def main() -> None:
    spec = json.loads(sys.argv[1])
    # Its compilers go with it: they are of its process group, which ends as a whole.
    os.setpgrp()
    signal.signal(signal.SIGTERM, lambda number, frame: os.killpg(0, signal.SIGKILL))
    _core.die_with_parent(spec["parent_pid"], signal.SIGTERM)
    os.nice(5)  # a saturated machine never finishes a compilation at 19
    os.umask(0o077)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = spec["inductor"]

    import torch

    from shmzero.config import NetConfig
    from shmzero.net import BlobNet
    from shmzero.net_device import MOST_ROWS, InferenceNet, cache_folder, package_path

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
    config = NetConfig(**spec["net"])
    device, precision = spec["device"], spec["precision"]
    function = InferenceNet(config, precision, spec["values"])
    weights = function.weights(BlobNet(config), device)
    with (cache_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # servers started together share one compilation
        path = package_path(function, device)
        if path.exists():
            return
        features = torch.zeros(512, _core.NUM_FEATURES, dtype=torch.float16, device=device)
        masks = torch.ones(512, dtype=torch.int64, device=device)
        rows = {0: torch.export.Dim("rows", min=1, max=MOST_ROWS)}
        shapes = {"features": rows, "masks": rows, "weights": tuple({} for _ in weights)}
        with torch.no_grad():
            exported = torch.export.export(
                Exported(function), (features, masks, *weights), dynamic_shapes=shapes
            )
            temporary = path.with_name(f"{os.getpid()}-{path.name}")
            torch._inductor.aoti_compile_and_package(
                exported,
                package_path=str(temporary),
                # They take hundreds of megabytes, and pay only where many networks are compiled.
                inductor_configs={"aot_inductor.precompile_headers": False},
            )
        temporary.replace(path)


if __name__ == "__main__":
    main()
