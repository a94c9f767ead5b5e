"""Tells workers and inference processes that are stuck from those that work or wait, by what the segment says.

Read next: processes/watch.py (when time counts), engine/fleet.py (who asks).
"""

from __future__ import annotations

import time
from collections import deque

from shmzero.engine.inference_pool import Request, Server
from shmzero.engine.plan import FleetPlan
from shmzero.engine.worker_pool import Worker
from shmzero.processes.watch import Watch
from shmzero.shm.segment import PrivateSegment

LOOK_S = 0.2
"""How often the children are looked at for one that is stuck."""


class StallWatch:
    """Ends children that are stuck; what becomes of them then is a death like any other."""

    def __init__(self, memory: PrivateSegment, plan: FleetPlan, stall_s: float, events: deque[str]) -> None:
        """`stall_s`: how long a child with work may move nothing on. `events` gets lines for people."""
        self._segment = memory.segment
        self._stall_s = stall_s
        self._events = events
        rows = plan.workers * plan.slots * plan.rows_per_slot
        self._batches_for_all = rows // plan.max_batch + plan.workers * plan.slots + 8
        """More batches than an inference process needs to answer all requests that there can be at once."""
        self._mended = [0] * len(plan.devices)
        """How many stray words of slots each inference process and its predecessors have mended, as far as was said."""
        self._looked_at = time.monotonic()

    def look(self, workers: list[Worker], servers: list[Server]) -> None:
        """Look at all children, if that is due. To be called often."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        for worker in workers:
            if line := worker.child.end_stuck(self._why_worker(worker)):
                self._events.append(line)
        for server in servers:
            self._tell_mended(server)
            if line := server.child.end_stuck(self._why_server(server)):
                self._events.append(line)

    def _why_worker(self, worker: Worker) -> str | None:
        """What a worker has not done for too long, None where it may go on."""
        waits = self._segment.waits_for_servers(worker.index)  # if for too long, that is a server's doing
        progress = self._segment.worker_counters(worker.index)["progress"]
        worker.child.watch.look(progress, bool(worker.outstanding) and not waits)
        limit_s = worker.child.watch.stuck_s(self._stall_s)
        return f"did nothing for {limit_s:g} s with work to do" if limit_s else None

    def _why_server(self, server: Server) -> str | None:
        """What an inference process has not done for too long, None where it may go on."""
        batches = self._segment.server_counters(server.index)["batches"]
        held = self._segment.held_slots(server.index)
        server.child.watch.look((server.ready, batches), not server.ready or bool(held))
        if limit_s := server.child.watch.stuck_s(self._stall_s):
            if server.ready:
                return f"finished no batch for {limit_s:g} s"
            return f"did not begin to serve within {limit_s:g} s"
        return self._passed_over(server, held, batches)

    def _passed_over(self, server: Server, held: list[Request], batches: int) -> str | None:
        """The request that an inference process leaves waiting while it answers others, in words."""
        known, server.held = server.held, {}
        for request in held:
            watch, before = server.held[request] = known.get(request) or (Watch(moved=True), batches)
            watch.look(None, has_work=True)
            # It takes the oldest requests first: within so many batches every one of today's is answered.
            if watch.stuck_s(self._stall_s) and batches - before > self._batches_for_all:
                worker, slot, _ = request
                return (
                    f"passed over slot {slot} of worker {worker} in {batches - before} batches and {self._stall_s:g} s"
                )
        return None

    def _tell_mended(self, server: Server) -> None:
        """Say how many slots an inference process has mended since it was said last."""
        mended = self._segment.server_counters(server.index)["refused"]
        if mended > self._mended[server.index]:
            self._events.append(
                f"{server.child.name} mended {mended - self._mended[server.index]} slots whose words neither it nor a "
                "worker wrote: something else writes into the shared memory"
            )
            self._mended[server.index] = mended
