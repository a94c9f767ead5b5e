"""Devices and worker loops that do wrong on purpose, for children that the environment tells to use them.

`with_fault(SLOW, 0.002)` is that environment (see shmzero/processes/seam.py); what it gives a fault to work with is in
SHMZERO_FAULT.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from shmzero import _core
from shmzero.errors import ModelFailed
from shmzero.inference.device import BatchDevice
from shmzero.inference.factory import make_built_in_device
from shmzero.inference.messages import DeviceSpec

DEVICE, WORKER_LOOP, GIVEN = "SHMZERO_DEVICE", "SHMZERO_WORKER_LOOP", "SHMZERO_FAULT"


def with_fault(variable: str, function: Any, given: object = "") -> dict[str, str]:
    """Variables with which every child that `variable` concerns uses a function of this module."""
    return {variable: f"{__name__}:{function.__name__}", GIVEN: str(given)}


class Wrapped:
    """A device that passes everything on."""

    def __init__(self, device: BatchDevice) -> None:
        self.inner = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class SlowDevice(Wrapped):
    def launch(self, buffer: int, rows: int) -> None:
        time.sleep(float(os.environ[GIVEN]))
        self.inner.launch(buffer, rows)


def slow_device(spec: DeviceSpec) -> Any:
    """Takes SHMZERO_FAULT seconds longer for each batch, on every machine, and gives the same answers."""
    return SlowDevice(make_built_in_device(spec))


class DeviceThatFailsOnce(Wrapped):
    launched = 0

    def launch(self, buffer: int, rows: int) -> None:
        self.launched += 1
        if self.launched == 150 and not os.path.exists(os.environ[GIVEN]):
            Path(os.environ[GIVEN]).touch()
            raise ModelFailed("the kettle is empty")
        self.inner.launch(buffer, rows)


def device_that_fails_once(spec: DeviceSpec) -> Any:
    """Fails at the 150th batch, unless the file SHMZERO_FAULT says that it has."""
    return DeviceThatFailsOnce(make_built_in_device(spec))


def broken(*arguments: object) -> NoReturn:
    """A device that cannot be made, or a loop that does not begin."""
    raise ZeroDivisionError("the kettle is empty")


def poisoned_loop(segment: _core.Segment, worker: int, *more: Any) -> None:
    """Whatever worker plays round 2 ends by a crash, or, where there is a file SHMZERO_FAULT, stops."""

    def watch() -> None:  # for a bot's long decision in that round: a short step is over before the signal comes
        began = None
        while True:
            now = segment.worker_counters(worker)
            if segment.playing_unit(worker) != 2:
                began = None
            elif began is None or now["decisions"] != began["decisions"] or now["rows"] != began["rows"]:
                began = now
            elif now["progress"] > began["progress"] + 1000:
                break
        os.kill(os.getpid(), signal.SIGSTOP if os.path.exists(os.environ[GIVEN]) else signal.SIGSEGV)

    threading.Thread(target=watch, daemon=True).start()
    _core.run_worker(segment, worker, *more)
