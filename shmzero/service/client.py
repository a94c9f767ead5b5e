"""A program's side of an inference service: rows in, answers out. Needs numpy, never torch.

A request is copied into a block of the service's shared memory and its answer copied out of it
(csrc/shm/client.h, without the GIL). Client is what programs call; link.py below it finds the server and blocks,
pending.py splits large requests and asks again where a server was replaced. Read next: pending.py, server.py.
"""

from __future__ import annotations

import time
from typing import Any

from shmzero.service.arrays import as_torch, slot_arrays
from shmzero.service.link import Link
from shmzero.service.pending import PendingRequest, call, split
from shmzero.service.slot_request import SlotRequest
from shmzero.settings import seconds


class Client:
    """Evaluates rows on a service, from any thread of any process of this machine.

    Pickles as its name; the child of a fork attaches anew. Raises in every call: ValueError for
    wrong shapes and for states that are not finite, TimeoutError after `timeout` seconds,
    ModelFailed with the server's message, ServerGone where nobody serves the name by then, and at once
    SegmentError where the name is another user's or there is no /dev/shm. `timeout` is for all that a
    call waits for, None without end; a server that is started meanwhile answers it.
    """

    def __init__(self, name: str, *, connect_timeout: float | None = 10.0, spin_us: float | None = None) -> None:
        """Waits up to `connect_timeout` seconds for a server of that name; then raises ServerGone.

        spin_us: how long a call spins at most before it sleeps (default: 50 where there is more than one
        core); spins that are in vain, because processes outnumber cores, shorten the next ones.
        """
        self._link = Link(name, spin_us)
        self._link.connect(None, time.monotonic() + seconds("connect_timeout", connect_timeout))

    @property
    def name(self) -> str:
        """The service's name."""
        return self._link.name

    @property
    def version(self) -> int:
        """The version of the weights that gave the last answer; the oldest for a split request."""
        return self._link.version

    # --- what the service is ------------------------------------------------------------------------

    @property
    def state_dim(self) -> int:
        """Width of a state."""
        return self._link.current().segment.state_dim

    @property
    def action_dim(self) -> int:
        """Width of a mask and of a policy."""
        return self._link.current().segment.action_dim

    @property
    def value_dim(self) -> int:
        """Width of a value."""
        return self._link.current().segment.value_dim

    @property
    def wire(self) -> str:
        """float16 or float32: how states travel."""
        return self._link.current().segment.wire

    @property
    def max_rows(self) -> int:
        """How many rows travel together at most; a request of more is split."""
        return self._link.current().segment.rows_per_slot

    # --- calls ----------------------------------------------------------------------------------------

    def evaluate(self, state: Any, mask: Any, timeout: float | None = 30.0) -> tuple[Any, Any]:
        """(policy [A], value [V]) of one state [S] and its mask [A], in the state's kind.

        Masks here and below: bools, or 0 and 1 as any numbers; anything else is a ValueError.
        """
        deadline = time.monotonic() + seconds("timeout", timeout)
        link = self._link
        connection = link.current(deadline)
        rows, bools, like = slot_arrays(state, mask, connection.widths, 1)
        policy, value, link.version = call(link, connection, rows, bools, deadline)
        return (policy, value) if like is None else (as_torch(policy, like), as_torch(value, like))

    def evaluate_many(self, states: Any, masks: Any, timeout: float | None = 30.0) -> tuple[Any, Any]:
        """(policies [n, A], values [n, V]) of states [n, S] and masks [n, A].

        Stacked arrays or sequences of rows, numpy or torch; the answer is of the input's kind and order.
        """
        deadline = time.monotonic() + seconds("timeout", timeout)
        link = self._link
        connection = link.current(deadline)
        rows, bools, like = slot_arrays(states, masks, connection.widths, 2)
        if not 0 < len(rows) <= connection.segment.rows_per_slot:
            return split(link, connection, rows, bools, like, deadline)[0]
        policies, values, link.version = call(link, connection, rows, bools, deadline)
        return (policies, values) if like is None else (as_torch(policies, like), as_torch(values, like))

    def submit_many(self, states: Any, masks: Any) -> PendingRequest:
        """Send rows and return at once; `result(timeout)` of what is returned waits for the answer.

        Rows of more than one slot are sent as slots become free, at the latest in `result`. Only a first
        call, which has no server yet, waits for one: up to 30 seconds.
        """
        connection = self._link.current()
        rows, bools, like = slot_arrays(states, masks, connection.widths, 2)
        return PendingRequest(self._link, connection, rows, bools, like)

    def request(self, rows: int, timeout: float | None = 30.0) -> SlotRequest:
        """`with client.request(rows) as r:` gives the slot itself, without a copy: see SlotRequest.

        `rows` is at most `max_rows`; the block is entered `timeout` seconds after this call at the latest.
        """
        return SlotRequest(self._link, rows, time.monotonic() + seconds("timeout", timeout))

    def close(self) -> None:
        """Give the blocks back. A further call attaches again."""
        self._link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return unpickled, (self._link.name, self._link.given_spin_us)


def unpickled(name: str, spin_us: float | None) -> Client:
    """A client that looks for its server when it is first called."""
    client = Client.__new__(Client)
    client._link = Link(name, spin_us)
    return client
