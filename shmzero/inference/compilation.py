"""The way from a network that is served eagerly to its compiled form. Read next: nets/compiled.py, the cache."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import torch
from torch import Tensor

from shmzero.errors import NotCompiled
from shmzero.nets.compiled import (
    CUDA_PACKAGES_FROM,
    ServingFunction,
    is_cached,
    last_line,
    load_package,
    package_path,
    start_compiler,
    torch_version,
)
from shmzero.nets.inference_net import InferenceNet
from shmzero.shm.names import nameless_file

LOOK_S = 0.5
"""How often a server looks whether the compiled callable is there."""
COMPILE_AFTER_S = 2.0
"""How long after its start a server starts the compile helper. Until then a run's first rounds have the cores."""


class Compilation:
    """The compiled callable of a serving function, taken up as soon as it is in the cache.

    Where nobody else makes it, a helper process is started that does. Whatever goes wrong, the function is served
    eagerly and a line says why.
    """

    def __init__(self, net: InferenceNet, device: str, weights: list[Tensor], wanted: bool) -> None:
        """`weights`: with which the callable is called once before it serves. Unless `wanted`, there will be none."""
        self.callable: ServingFunction | None = None
        """The compiled callable, once it is there."""
        self.helper: subprocess.Popen[bytes] | None = None
        """The compile helper, if this process has started one."""
        self.began_at = time.monotonic()
        self._looked_at = self.began_at
        self._net = net
        self._device = device
        self._package: Path | None = None  # where the callable will be, as long as it may still appear
        self.description = "eagerly"
        """How the function was served at first."""
        if wanted:
            self._helper_stderr = os.fdopen(nameless_file("shmzero-stderr"), "w+b")
            try:
                self._package = self._find_package()
                self.description = "compiled" if self._load(weights) else "eagerly until its compiled form is ready"
            except NotCompiled as error:
                self._package = None
                self.description = f"eagerly: {error}"

    @property
    def is_pending(self) -> bool:
        """Whether a compiled callable may still appear."""
        return self._package is not None

    def poll(self, weights: list[Tensor]) -> str | None:
        """Take up the callable if it has appeared, or see to it that somebody makes it. Returns a line about it."""
        now = time.monotonic()
        if self._package is None or now - self._looked_at < LOOK_S:
            return None
        self._looked_at = now
        try:
            has_ended = self.helper is not None and self.helper.poll() is not None
            if self._load(weights):
                clock, seconds = time.strftime("%H:%M:%S"), now - self.began_at
                return f"serves the compiled network from {clock} on, {seconds:.0f} s after it began to serve"
            if has_ended:
                raise NotCompiled(self._why_helper_failed())
            if self.helper is None and now - self.began_at >= COMPILE_AFTER_S:
                self.helper = start_compiler(self._net, self._device, self._helper_stderr)
        except NotCompiled as error:
            self._package = None
            return f"serves eagerly: {error}"
        return None

    def _find_package(self) -> Path:
        if self._device != "cpu" and torch_version() < CUDA_PACKAGES_FROM:
            raise NotCompiled(f"torch {torch.__version__} cannot load it on CUDA, torch 2.13 can")
        return package_path(self._net, self._device)

    def _load(self, weights: list[Tensor]) -> bool:
        """Take up the callable where it is in the cache. Raises NotCompiled where it cannot be used."""
        if self._package is None or not is_cached(self._package):
            return False
        self.callable = load_package(self._package, self._device, weights)
        self._package = None
        return True

    def _why_helper_failed(self) -> str:
        assert self.helper is not None
        self._helper_stderr.seek(0)
        words = last_line(self._helper_stderr.read().decode(errors="replace")) or "it said nothing"
        return f"the compile helper ended with status {self.helper.returncode} ({words})"
