"""InferenceServer: a model behind a named service, in a thread of this process.

The batch loop is inference/loop.py, the same as the engine's. A second thread is the reaper: it frees
the blocks of clients that died. Read next: host.py (both threads), client.py (the other side).
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

from shmzero import _core
from shmzero.inference.model_factory import make_model_device
from shmzero.service.client import Client
from shmzero.service.host import Host
from shmzero.service.options import ServiceOptions
from shmzero.shm.names import service_path, sweep_leftovers, unnamed_service
from shmzero.shm.service_segment import ServiceSegment
from shmzero.shm.sizes import Widths


class InferenceServer:
    """Serves a model to every process of this user and machine, from a thread of this process.

    model: a torch module that maps (states f32 [B, S], masks bool [B, A]) to (policies [B, A], values
    [B, V]); or a function of numpy arrays that does; or a BatchDevice. It may also return a list, a
    longer tuple, of which the first two count, or a dict with `policy` and `value`. It answers a row that
    the server makes up before it serves.
    copy: serve a copy of a module. With False the module itself is served: it is moved to the device and
    put into evaluation mode, a swap copies weights into it, and it must not be trained meanwhile.
    grad: a module may take gradients within a call (torch.autograd.grad); its answers are detached.
    check_finite: a request whose answer holds NaN or infinity raises ModelFailed; False hands such answers
    out. The policy of a row without a legal action, which asks for its value alone, is zeros then.
    A request is in one slot; `slots` is how many there may be at once over all clients. A restart under
    the same name and sizes takes over the requests that a dead predecessor left. Where none will follow,
    `rm /dev/shm/shmzero-NAME` frees its memory; what was served without a name goes with the next start.

    Raises ConfigError where a living server or another user has the name, the module cannot be copied or
    moved to the device, or it does not answer in these widths; SegmentError where /dev/shm has no room,
    cannot be written to or is not there.
    """

    def __init__(
        self,
        model: Any,
        state_dim: int = _core.NUM_FEATURES,
        action_dim: int = _core.NUM_ACTIONS,
        value_dim: int = 1,
        *,
        device: str = "auto",
        name: str | None = None,
        wire: str = "float32",
        max_batch: int = 1024,
        slots: int = 128,
        rows_per_slot: int = 128,
        timeout_ms: float = 2.0,
        spin_us: float | None = None,
        copy: bool = True,
        grad: bool = False,
        check_finite: bool = True,
    ) -> None:
        self.name = unnamed_service() if name is None else name
        service_path(self.name)  # a name that cannot be is refused before the model is looked at
        widths = Widths(state_dim, action_dim, value_dim, wire)
        options = ServiceOptions(widths, slots, rows_per_slot, max_batch, timeout_ms, spin_us, check_finite)
        self.device = make_model_device(model, widths, max_batch, device, copy, grad)
        sweep_leftovers()
        self._memory = memory = ServiceSegment(self.name, options.sizes)
        self._host = Host(memory, memory.epoch, self.device, memory.first_version, options)
        self._end = weakref.finalize(self, self._host.close)  # also at the program's end

    @property
    def version(self) -> int:
        """The version of the weights being served. It grows with each swap. A server that follows on one that died
        begins above whatever that one answered with; after one that closed, which leaves nothing, it begins at 0."""
        return self._host.control.version

    @property
    def error(self) -> BaseException | None:
        """The error that ended the server, or None."""
        return self._host.error

    @property
    def last_failure(self) -> str:
        """What the model raised last, or the traceback of `error`."""
        return self._host.control.last_failure

    @property
    def events(self) -> deque[str]:
        """Lines about what happened, the newest 100; whoever shows them takes them out."""
        return self._host.control.events

    def client(self) -> Client:
        """A client of this server."""
        return Client(self.name)

    def swap(self, weights: Any, timeout: float | None = 60.0) -> int:
        """Serve other weights from the next batch on; returns their version once they are taken up.

        weights: the path of a .safetensors file, a state_dict, a module of the same kind, or, where the
        model is a function, another function. Raises ConfigError, and the old stay, for what does not fit
        and where the module then does not answer made-up rows as a new module does by itself, as one that
        is frozen would not; of a file or a state_dict only a swap that changes no answer can be told. A
        module whose answers differ from call to call is not compared.
        Raises TimeoutError where they were not taken up in time: they are withdrawn then, unless the
        server was at it, which `version` will tell.
        """
        return self._host.swap(weights, timeout)

    def stats(self) -> dict[str, Any]:
        """Sums since the segment was made: rows, batches, requests, clients, waiting times (to 19 %)."""
        return self._host.stats()

    def close(self) -> None:
        """Leave: finish the batches at hand, tell the clients, remove the name."""
        self._end()

    def __enter__(self) -> InferenceServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
