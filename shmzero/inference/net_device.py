"""What the devices of a network share: weights, the compiled callable, the second network."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shmzero import _core
from shmzero.errors import ConfigError, NotCompiled
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import check_searchable, load_checkpoint
from shmzero.nets.compiled import (
    CUDA_PACKAGES_FROM,
    Callable3,
    is_cached,
    last_line,
    load_package,
    package_path,
    start_compiler,
    torch_version,
)
from shmzero.nets.inference_net import InferenceNet
from shmzero.nets.precision import resolve_precision
from shmzero.shm.names import nameless_file

LOOK_S = 0.5
"""How often a server looks whether the compiled callable is there."""
COMPILE_AFTER_S = 2.0
"""How long after its start a server starts the compile helper. Until then a run's first rounds have the cores."""


class NetDevice:
    """What CPU and CUDA share: weights, and the callable that serves."""

    def __init__(
        self, net: BlobNet, device: str, precision: str, compiled: bool, max_batch: int, searched: bool | None
    ) -> None:
        """`searched`: whether a search reads the values. If not they are left out; if so, of games they are refused;
        None where anything may be asked."""
        self.max_batch = max_batch
        self._searched = searched
        self.device = device
        self.inference_net = InferenceNet(net.config, resolve_precision(precision, device), searched is not False)
        self.weights = self.inference_net.weights(net, device)
        self._other: tuple[InferenceNet, list[Tensor]] | None = None
        self.compiled: Callable3 | None = None
        self._package: Path | None = None
        self._began_at = self._looked_at = time.monotonic()
        self._compiler: subprocess.Popen[bytes] | None = None
        how = "eagerly"
        if compiled:
            self._said = os.fdopen(nameless_file("shmzero-stderr"), "w+b")
            try:
                if device != "cpu" and torch_version() < CUDA_PACKAGES_FROM:
                    raise NotCompiled(f"torch {torch.__version__} cannot load it on CUDA, torch 2.13 can")
                self._package = package_path(self.inference_net, device)
                how = "compiled" if self._load_package() else "eagerly until its compiled form is ready"
            except NotCompiled as error:
                self._package = None
                how = f"eagerly: {error}"
        self.description = f"{device} {self.inference_net.precision}, {how}"

    @property
    def compiling(self) -> bool:
        """Whether a compiled callable may still appear."""
        return self._package is not None

    def _load_package(self) -> bool:
        """Take up the compiled callable where it is in the cache. Raises NotCompiled where it cannot be used."""
        if self._package is None or not is_cached(self._package):
            return False
        self.compiled = load_package(self._package, self.device, self.weights)
        self._package = None
        return True

    def poll(self) -> str | None:
        """Takes up the compiled callable once it has appeared in the cache, and has it made if nobody else does."""
        now = time.monotonic()
        if self._package is None or now - self._looked_at < LOOK_S:
            return None
        self._looked_at = now
        try:
            ended = self._compiler is not None and self._compiler.poll() is not None
            if self._load_package():
                clock, seconds = time.strftime("%H:%M:%S"), now - self._began_at
                return f"serves the compiled network from {clock} on, {seconds:.0f} s after it began to serve"
            if ended:
                assert self._compiler is not None
                self._said.seek(0)
                words = last_line(self._said.read().decode(errors="replace")) or "it said nothing"
                raise NotCompiled(f"the compile helper ended with status {self._compiler.returncode} ({words})")
            if self._compiler is None and now - self._began_at >= COMPILE_AFTER_S:
                self._compiler = start_compiler(self.inference_net, self.device, self._said)
        except NotCompiled as error:
            self._package = None
            return f"serves eagerly: {error}"
        return None

    def new_weights(self, path: str) -> list[Tensor]:
        """A checkpoint's weights for this network. Raises ConfigError where it is another one."""
        net = load_checkpoint(path)
        if self._searched:
            check_searchable(path)
        if net.config != self.inference_net.config:
            raise ConfigError(
                f"checkpoint {path} is a network of other sizes ({net.config}); "
                f"this run serves {self.inference_net.config}"
            )
        return self.inference_net.weights(net, self.device)

    def seat_other(self, path: str) -> None:
        """Have this checkpoint's network, of any sizes, answer the rows that carry its mark (_core.OTHER_NETWORK)."""
        net = load_checkpoint(path)
        serving = InferenceNet(net.config, self.inference_net.precision)
        self._other = serving, serving.weights(net, self.device)

    def _answer_others(
        self, marked: NDArray[np.uint64], features: Tensor, masks: Tensor, policies: Tensor, values: Tensor
    ) -> None:
        """Put the other network's answers in its rows. Until there is one, they keep this one's.

        `marked` [B] are the masks in this process's memory, `masks` the same on the device.
        """
        if self._other is None:
            return
        rows = _core.rows_of_other_network(marked)
        if len(rows) == 0:
            return
        places = torch.from_numpy(rows).to(self.device)
        net, weights = self._other
        found = net(features[places], masks[places], *weights)
        policies.index_copy_(0, places, found[0])
        values.index_copy_(0, places, found[1])
