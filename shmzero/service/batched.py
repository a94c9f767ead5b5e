"""BatchedEvaluator: one model for the threads of one process."""

from __future__ import annotations

import os
import time
import weakref
from typing import Any

from shmzero import _core
from shmzero.errors import ServerGone
from shmzero.inference.model_factory import make_model_device
from shmzero.service.client import Client
from shmzero.service.connection import Connection
from shmzero.service.host import Host
from shmzero.service.link import Link
from shmzero.service.options import ServiceOptions
from shmzero.shm.names import unnamed_service
from shmzero.shm.segment import PrivateSegment, create_private
from shmzero.shm.sizes import Widths


class PrivateLink(Link):
    """The way to a server of this process, whose segment has no name."""

    def __init__(self, host: Host, memory: PrivateSegment, spin_us: float | None) -> None:
        super().__init__(unnamed_service(), spin_us)
        self._host = host
        self._memory = memory

    def find(self) -> Connection | None:
        """A new connection to it. Raises ServerGone where it has ended, and in the child of a fork."""
        if self._host.pid != os.getpid():
            raise ServerGone(f"this evaluator belongs to process {self._host.pid}, of which this one is a fork")
        if self._host.segment.service_closed:
            raise ServerGone("this evaluator has been closed, or its thread has ended")
        return Connection(self._host.segment, os.fstat(self._memory.fd).st_ino)


class BatchedEvaluator(Client):
    """Puts the rows of a process's threads together into batches: Client's calls, without a service.

    The arguments are InferenceServer's. Threads meet in slots of private memory under the same firing
    rules. Belongs to one process: it cannot be pickled, and the child of a fork gets ServerGone. Needs no
    /dev/shm. Raises SegmentError where there is too little memory.
    """

    def __init__(
        self,
        model: Any,
        state_dim: int = _core.NUM_FEATURES,
        action_dim: int = _core.NUM_ACTIONS,
        value_dim: int = 1,
        *,
        device: str = "auto",
        wire: str = "float32",
        max_batch: int = 1024,
        slots: int = 16,
        rows_per_slot: int = 256,
        timeout_ms: float = 2.0,
        spin_us: float | None = None,
        copy: bool = True,
        grad: bool = False,
        check_finite: bool = True,
    ) -> None:
        widths = Widths(state_dim, action_dim, value_dim, wire)
        options = ServiceOptions(widths, slots, rows_per_slot, max_batch, timeout_ms, spin_us, check_finite)
        served = make_model_device(model, widths, max_batch, device, copy, grad)
        memory = create_private(1, slots, 1, rows_per_slot, widths)
        epoch = memory.segment.open_service(_core.own_identity())
        self._host = Host(memory, epoch, served, 0, options)
        self._link = PrivateLink(self._host, memory, spin_us)
        self._end = weakref.finalize(self._link, self._host.close)  # requests on their way keep it as well
        self._link.connect(None, time.monotonic())

    def swap(self, weights: Any, timeout: float | None = 60.0) -> int:
        """Does what InferenceServer.swap does."""
        return self._host.swap(weights, timeout)

    def stats(self) -> dict[str, Any]:
        """Returns what InferenceServer.stats returns."""
        return self._host.stats()

    def close(self) -> None:
        """End the threads. Every further call raises ServerGone."""
        super().close()
        self._end()

    def __enter__(self) -> BatchedEvaluator:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a BatchedEvaluator belongs to its process; use InferenceServer and Client instead")
