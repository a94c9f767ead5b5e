"""Batches between the slots of a segment and a device: gathered, launched, answered.

It decides neither when to stop nor which weights are served. Read next: loop.py, which does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shmzero import _core
from shmzero.errors import ModelFailed
from shmzero.inference.device import BatchDevice

POLL_MS = 50.0
"""How long `gather` waits for a first request while nothing is in flight."""
IN_FLIGHT_POLL_MS = 0.05
"""The same while a batch computes."""


class Batches:
    """The batches of one port on one device.

    Up to `device.num_buffers` are in flight; they finish in the order they were launched. Of a batch of several
    requests that failed, each request is computed once more alone: only those fail that the model refuses.
    """

    def __init__(
        self,
        port: _core.ServerPort,
        device: BatchDevice,
        version: int,
        timeout_ms: float,
        spin_us: float,
        check_finite: bool,
        on_failure: Callable[[ModelFailed], object],
    ) -> None:
        """`on_failure` is called once for each failure, before anybody is told of it. Where it raises, the requests
        stay unanswered.

        `timeout_ms`: how long a batch waits for further rows. `spin_us`: how long `gather` spins before it sleeps.
        With `check_finite` a request whose answer holds NaN or infinity fails.
        """
        self.version = version
        """The version of the weights, which goes with every answer. It changes only with nothing in flight."""
        self._port = port
        self._device = device
        self._timeout_ms = timeout_ms
        self._spin_us = spin_us
        self._check_finite = check_finite
        self._on_failure = on_failure
        self._in_flight: deque[tuple[int, int]] = deque()  # (buffer, batch), the oldest first
        self._failed: deque[tuple[int, ModelFailed]] = deque()  # batches of which no request has been answered yet
        self._next_buffer = 0

    @property
    def any_in_flight(self) -> bool:
        """Whether the device has a batch that has not been finished."""
        return bool(self._in_flight)

    @property
    def any_failed(self) -> bool:
        """Whether there is a batch that failed and whose requests still have to be computed one by one."""
        return bool(self._failed)

    def gather(self) -> None:
        """Launch what requests there are as a batch, if a buffer is free. Waits for them, at most POLL_MS."""
        if len(self._in_flight) == self._device.num_buffers:
            return
        staging = self._device.staging(self._next_buffer)
        is_busy = bool(self._in_flight)
        batch, rows = self._port.gather(
            staging.features,
            staging.masks,
            self._device.max_batch,
            self._timeout_ms,
            is_busy,
            IN_FLIGHT_POLL_MS if is_busy else POLL_MS,
            self._spin_us,
        )
        if rows:
            try:
                self._launch(batch, rows)
            except ModelFailed as error:
                self._set_aside(batch, error)

    def finish_ready(self) -> None:
        """Answer the oldest batch if it is computed. Waits for it where no buffer is free for another one."""
        in_flight = self._in_flight
        if in_flight and (len(in_flight) == self._device.num_buffers or self._device.finished(in_flight[0][0])):
            self._finish_oldest()

    def finish_all(self) -> None:
        """Answer every request at hand. Afterwards nothing is in flight and no slot waits for an answer of ours."""
        while self._in_flight:
            self._finish_oldest()
        while self._failed:
            batch, error = self._failed.popleft()
            requests = self._port.split(batch)
            if len(requests) == 1:
                self._port.fail(requests[0], str(error), self.version)
            else:
                for request in requests:
                    self._compute_alone(request)

    def _launch(self, batch: int, rows: int) -> None:
        self._device.launch(self._next_buffer, rows)
        self._in_flight.append((self._next_buffer, batch))
        self._next_buffer = (self._next_buffer + 1) % self._device.num_buffers

    def _finish_oldest(self) -> None:
        batch = self._in_flight[0][1]
        try:
            self._answer_oldest()
        except ModelFailed as error:
            self._set_aside(batch, error)

    def _answer_oldest(self) -> None:
        """Wait for the oldest batch and copy its answers into the slots. Raises ModelFailed."""
        buffer, batch = self._in_flight.popleft()
        self._device.wait(buffer)
        staging = self._device.staging(buffer)
        refused = self._port.scatter(batch, staging.policies, staging.values, self.version, self._check_finite)
        for part, message in refused:
            self._on_failure(ModelFailed(message))
            self._port.fail(part, message, self.version)

    def _set_aside(self, batch: int, error: ModelFailed) -> None:
        """Keep a batch that failed as a whole, until nothing is in flight and its requests can be tried alone."""
        self._on_failure(error)
        self._failed.append((batch, error))

    def _compute_alone(self, request: int) -> None:
        """Compute a request of a batch that failed, by itself, and answer it. Nothing may be in flight."""
        staging = self._device.staging(self._next_buffer)
        try:
            self._launch(request, self._port.refill(request, staging.features, staging.masks, self._device.max_batch))
            self._answer_oldest()
        except ModelFailed as error:
            self._port.fail(request, str(error), self.version)
