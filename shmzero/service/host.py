"""Two threads around one segment, the batch loop's and the reaper's, and what other threads say to the loop.

InferenceServer and BatchedEvaluator both have a Host. Read next: inference/loop.py, reaper.py.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from typing import Any

from shmzero import _core
from shmzero.errors import ConfigError, ModelFailed, ServerGone
from shmzero.inference.device import BatchDevice
from shmzero.inference.loop import BatchLoop
from shmzero.inference.messages import (
    Command,
    LoopEvent,
    NetworkCompiled,
    OtherRefused,
    TakeWeights,
    WeightsRefused,
    WeightsTaken,
)
from shmzero.service.options import ServiceOptions, spin_us_or_default
from shmzero.service.reaper import LOOK_MS, Reaper
from shmzero.service.stats import percentile_us
from shmzero.settings import seconds
from shmzero.shm.segment import PrivateSegment
from shmzero.shm.service_segment import ServiceSegment


class LoopControl:
    """The control of a batch loop that runs in a thread: other threads of the process ask it for a swap."""

    def __init__(self, version: int) -> None:
        self.closed = False
        self.version = version
        """The version of the weights being served."""
        self.failures = 0
        self.last_failure = ""
        self.events: deque[str] = deque(maxlen=100)
        self._command: TakeWeights | None = None
        self._last_version = version  # that of the last swap that was asked for
        self._outcome = (version, "")  # of the last swap that the loop has tried: its version and what was wrong
        self._is_swapping = False  # whether a thread waits for a swap: one at a time; guarded by `_done`
        self._done = threading.Condition()

    def commands(self) -> list[Command]:
        if self._command is None:
            return []
        with self._done:
            command, self._command = self._command, None
        return [] if command is None else [command]

    def failed(self, error: ModelFailed) -> None:
        self.failures += 1
        self.last_failure = str(error)

    def send(self, event: LoopEvent) -> None:
        match event:
            case NetworkCompiled(message) | OtherRefused(_, message):
                self.events.append(message)
            case WeightsTaken(version):
                self._settle(version, "")
            case WeightsRefused(version, message):
                self._settle(version, message)

    def _settle(self, version: int, refusal: str) -> None:
        """Wake the swap that waits for the loop; `refusal` is what was wrong, if anything."""
        with self._done:
            if not refusal:
                self.version = version
            self._outcome = (version, refusal)
            self._done.notify_all()

    def swap(self, weights: Any, timeout: float) -> int:
        """Wait until the loop has taken the weights up; return their version.

        Raises ConfigError, TimeoutError or ServerGone. After a TimeoutError the weights may still be taken up, where
        the loop was at it. No other swap gets their version.
        """
        end = time.monotonic() + timeout
        late = TimeoutError(f"weights were not taken up within {timeout:g} s: a batch or a swap is still running")
        with self._done:
            while self._is_swapping:
                if time.monotonic() >= end:
                    raise late
                self._done.wait(min(0.1, max(end - time.monotonic(), 0.0)))
            try:
                self._is_swapping = True
                self._last_version += 1
                self._command = TakeWeights(weights, self._last_version)
                while self._outcome[0] != self._last_version:
                    if self.closed:
                        raise ServerGone("the server has been closed")
                    if time.monotonic() >= end:
                        if self._command is not None:  # the loop has not begun: the swap is withdrawn
                            self._command = None
                            self._last_version -= 1
                        raise late
                    self._done.wait(min(0.1, max(end - time.monotonic(), 0.0)))
                if message := self._outcome[1]:
                    self._last_version -= 1
                    self._outcome = (self._last_version, "")
                    raise ConfigError(message)
                return self._last_version
            finally:
                self._is_swapping = False
                self._done.notify_all()


class Host:
    """A device that serves a segment: two threads, of the batch loop and of the reaper."""

    def __init__(
        self,
        memory: ServiceSegment | PrivateSegment,
        epoch: int,
        device: BatchDevice,
        version: int,
        options: ServiceOptions,
    ) -> None:
        """Starts to serve. `memory` is the host's from now on, which closes it, also where this raises.

        `version` is that of the weights which the device has now; `epoch` tells this server from earlier ones.
        """
        self.pid = os.getpid()
        self.segment = segment = memory.segment
        self.error: BaseException | None = None
        """What ended one of the threads, and with it the service."""
        self.control = LoopControl(version)
        self._memory = memory
        self._memory_lock = threading.Lock()  # the first of both threads that fails closes it
        self._has_memory = True
        self._reaper = Reaper(segment, self.control.events.append)
        try:
            self._reaper.look(0)  # what a dead predecessor's clients left, before anything is served
            port = _core.ServerPort(segment, 0, epoch, adaptive_spin=True, clients=True)
            loop = BatchLoop(
                port, device, self.control, version, options.timeout_ms, spin_us_or_default(options.spin_us),
                options.check_finite,
            )  # fmt: skip
            self._threads = [
                threading.Thread(target=self._run, args=(loop.run,), name="shmzero-serve", daemon=True),
                threading.Thread(target=self._run, args=(self._reap,), name="shmzero-reaper", daemon=True),
            ]
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.control.closed = True
            self._reaper.close()
            self._close_memory()
            raise

    def _run(self, body: Any, *args: Any) -> None:
        try:
            body(*args)
        except BaseException as error:  # the entry point of a thread; `error` is what its owner sees
            self.error = error
            self.control.last_failure = "".join(traceback.format_exception(error))
            self.control.closed = True
            self._close_memory()  # another server may have the name at once

    def _reap(self) -> None:
        while not self.control.closed:
            self._reaper.look(LOOK_MS)

    def swap(self, weights: Any, timeout: float | None) -> int:
        """Serve other weights: InferenceServer.swap says what is allowed and what is raised."""
        return self.control.swap(weights, seconds("timeout", timeout))

    def close(self) -> None:
        """Finish the batches at hand, end the threads, tell the clients. In the child of a fork it does nothing."""
        if self.pid != os.getpid():
            return
        self.control.closed = True
        for thread in self._threads:
            thread.join()
        self._reaper.close()
        self._close_memory()

    def _close_memory(self) -> None:
        """Tell the clients, give the name back; what is mapped stays."""
        with self._memory_lock:
            if self._has_memory:
                self._has_memory = False
                self.segment.close_service()
                self._memory.close()

    def stats(self) -> dict[str, Any]:
        """Sums since the segment was made: rows, batches, requests, clients, waiting times (to 19 %)."""
        counters = self.segment.server_counters(0)
        waits = counters["waits"]
        return {
            "rows": counters["rows"],
            "batches": counters["batches"],
            "requests": sum(waits),
            "failures": self.control.failures,
            "refused": counters["refused"],
            "clients": len(set(self.segment.owners())),
            "version": self.control.version,
            "wait_p50_us": percentile_us(waits, 0.50),
            "wait_p99_us": percentile_us(waits, 0.99),
            "batch_histogram": {
                rows: n for rows, n in zip(_core.BATCH_BINS_ROWS, counters["histogram"], strict=True) if n
            },
            "waits": waits,
        }
