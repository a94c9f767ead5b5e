"""A fleet of child processes: workers and inference processes around one segment.

The parent grants units, reads finished ones, replaces children that die, and is the reaper of their
slots. It knows nothing of SQLite and terminals; selfplay.py does. Read next: engine/worker.py, inference/process.py.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import struct
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from shmzero import _core
from shmzero.engine.config import SelfPlayConfig, to_flags
from shmzero.engine.plan import plan_fleet
from shmzero.engine.weights import Weights
from shmzero.errors import ConfigError, WorkerDied
from shmzero.game.bots import OLDER
from shmzero.nets.config import NETS
from shmzero.processes.child import Child, start_child, starting
from shmzero.processes.deaths import Deaths
from shmzero.processes.line_socket import LineSocket
from shmzero.processes.watch import Watch
from shmzero.shm.segment import create_private

GRANT = struct.Struct("=QI4x8h")
"""A unit as the workers read it: id, first round, points of the seats before that (csrc/play/lane.h, Unit)."""
GRANT_UNITS = 4096 // GRANT.size
"""Units in one write: 4096 bytes, which a pipe takes whole or not at all."""
FRAME = struct.Struct("=IQI")
"""What precedes a record: bytes that follow this number, unit, 1 where it is the unit's last (csrc/play/worker.h)."""
PIPE_BYTES = 1 << 20
LOOK_S = 0.2
"""How often the children are looked at for one that is stuck."""
HELD = {"ready", "taken", "orphaned"}
"""States of slots that an inference process has to move on."""
MOST_BLAMED = 2
"""How many workers may end by what they play of one unit."""
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP)
"""Signals that a process gets by its own doing. Nobody knows who sent any other signal."""


@dataclass
class _Worker:
    index: int
    child: Child
    grant_fd: int
    record_fd: int
    outstanding: set[int] = field(default_factory=set)
    buffer: bytes = b""


@dataclass
class _Server:
    index: int
    child: Child
    lines: LineSocket
    epoch: int
    heard: int
    """The version of the weights that it last took, refused or was started with."""
    ready: bool = False
    held: dict[tuple[int, int, int], tuple[Watch, int]] = field(default_factory=dict)
    """Requests that it holds, as (worker, slot, generation), with its batches when each was first seen."""


class Fleet:
    """Workers and inference processes that play units. Use as a context manager, from one thread."""

    def __init__(
        self,
        config: SelfPlayConfig,
        units: Iterable[int],
        num_units: int,
        version: int = 0,
        in_progress: Mapping[int, list[bytes]] | None = None,
    ) -> None:
        """Starts everything. `units` yields the ids to play, `num_units` is how many there are.

        `version` is that of the weights it starts with; `in_progress` has the first rounds' records of games
        that it shall go on with.

        Raises SegmentError where shared memory is short, ConfigError for impossible sizes and for a
        checkpoint that cannot be read, StartError where the machine has no room for the processes.
        """
        config.check_devices()
        self.config = config
        self.plan = plan_fleet(config, num_units)
        self.events: deque[str] = deque()
        """Lines for people: replacements, refusals, the switch to the compiled network."""
        self.paused = False
        """While set, no further units are granted; those in progress go on."""
        self.in_progress: dict[int, list[bytes]] = {
            unit: list(records) for unit, records in (in_progress or {}).items()
        }
        """Records of the rounds finished so far of games in progress: all that is needed to go on with them."""
        self.version = version
        """The version of the weights that were published last; see `served`."""
        other = config.other_network()
        self._others = [] if other in (None, OLDER) else [other]
        """Checkpoints of the network that holds the others' seats. Where the last is refused, the one before stays."""
        self._fresh: Iterator[int] = iter(units)
        self._returned: deque[int] = deque()
        self._left = num_units
        self._finished: list[tuple[int, list[bytes]]] = []
        """Units that have come and were not returned yet: an error on the way must not cost them."""
        self._deaths = Deaths()
        rows = self.plan.workers * self.plan.slots * self.plan.rows_per_slot
        self._batches_for_all = rows // self.plan.max_batch + self.plan.workers * self.plan.slots + 8
        """More batches than an inference process needs to answer all requests that there can be at once."""
        self._blamed: Counter[int] = Counter()
        """How many workers each unit has ended."""
        self._workers: list[_Worker] = []
        self._servers: list[_Server] = []
        self._refused = [0] * len(self.plan.devices)
        """How many stray words of slots each inference process and its predecessors have mended, as far as was said."""
        self._looked_at = time.monotonic()
        try:
            self._served = Weights.copied(version, config.checkpoint) if config.checkpoint else Weights(version, None)
        except OSError as error:
            raise ConfigError(f"checkpoint {config.checkpoint} cannot be read: {error.strerror}") from None
        self._weights = {version: self._served}
        """The weights by version: those served, those offered since, and those that a server may be about to read."""
        with starting("a fleet") as undo:
            self._selector = selectors.DefaultSelector()
            undo.callback(self._selector.close)
            undo.callback(self._served.close)
            self._memory = create_private(
                len(self.plan.devices), self.plan.workers, self.plan.slots, self.plan.rows_per_slot
            )
        self.segment = self._memory.segment
        try:
            for index in range(len(self.plan.devices)):
                self._servers.append(self._start_server(index, epoch=1))
            for index in range(self.plan.workers):
                self._workers.append(self._start_worker(index))
        except BaseException:
            self.close()
            raise

    # --- children ---------------------------------------------------------------------------------

    def _start_worker(self, index: int) -> _Worker:
        config = self.config
        name = f"worker {index}"
        with starting(name) as held, ExitStack() as theirs:
            grant_read, grant_write = os.pipe()
            theirs.callback(os.close, grant_read)
            held.callback(os.close, grant_write)
            record_read, record_write = os.pipe()
            theirs.callback(os.close, record_write)
            held.callback(os.close, record_read)
            with suppress(PermissionError):  # beyond a user's share of pipe memory; a small pipe will do
                fcntl.fcntl(record_read, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            os.set_blocking(grant_write, False)
            os.set_blocking(record_read, False)
            spec = {
                "segment_fd": self._memory.fd,
                "worker": index,
                "grant_fd": grant_read,
                "record_fd": record_write,
                "lanes": self.plan.lanes,
                "spin_us": self.plan.spin_us,
                "search": asdict(config.search()),
                "play": {
                    "seed": config.seed,
                    "players": config.players,
                    "cards": config.cards,
                    "trump": config.trump,
                    "dealer": config.dealer,
                    "games": config.games is not None,
                    "others": config.others,
                },
            }
            fds = [self._memory.fd, grant_read, record_write]
            child = start_child(name, "shmzero.engine.worker", spec, fds, 1, held)
        worker = _Worker(index, child, grant_write, record_read)
        self._selector.register(record_read, selectors.EVENT_READ, worker)
        self._selector.register(child.end_fd, selectors.EVENT_READ, worker)
        return worker

    def _start_server(self, index: int, epoch: int) -> _Server:
        config = self.config
        name = f"inference process {index}"
        with starting(name) as held, ExitStack() as theirs:
            lines, control_fd = LineSocket.pair(held, theirs)
            spec = {
                "segment_fd": self._memory.fd,
                "server": index,
                "epoch": epoch,
                "control_fd": control_fd,
                "threads": self.plan.threads,
                "evaluator": config.evaluator,
                "device": self.plan.devices[index],
                "precision": config.precision,
                "compile": config.compile,
                "max_batch": self.plan.max_batch,
                "timeout_ms": config.timeout_ms,
                "spin_us": self.plan.spin_us,
                "net": asdict(NETS[config.net]),
                "checkpoint": self._served.name,
                "searched": config.search().simulations > 0,
                "other": self._others[-1] if self._others else None,
                "seed": config.seed,
                "version": self._served.version,
            }
            fds = [self._memory.fd, control_fd]
            child = start_child(name, "shmzero.inference.process", spec, fds, self.plan.threads, held)
        server = _Server(index, child, lines, epoch, heard=self._served.version)
        self._selector.register(lines, selectors.EVENT_READ, server)
        self._selector.register(child.end_fd, selectors.EVENT_READ, server)
        newest = self._weights[max(self._weights)]
        if newest is not self._served and not newest.refused:
            self._offer(server, newest)  # the one before it may have died without taking them
        return server

    # --- the loop ---------------------------------------------------------------------------------

    @property
    def restarts(self) -> int:
        """Children that died and were replaced."""
        return self._deaths.total

    @property
    def ready(self) -> bool:
        """Whether every inference process serves; one that is starting still has to read its weights."""
        return all(server.ready for server in self._servers)

    @property
    def waits(self) -> bool:
        """Whether it is paused and has finished all that was granted: nobody plays."""
        return self.paused and not any(worker.outstanding for worker in self._workers)

    @property
    def done(self) -> bool:
        """Whether every unit has been returned by `poll`."""
        return self._left == 0

    def poll(self, timeout_s: float) -> list[tuple[int, list[bytes]]]:
        """Units finished within at most `timeout_s`, as (unit, records); each once.

        Grants work, replaces the dead. Raises WorkerDied when children keep dying, ConfigError where
        a child refuses its settings, StartError where there is no room for a replacement.
        """
        self._grant()
        for server in self._servers:
            server.lines.flush()
        dead: list[_Worker | _Server] = []
        for key, _ in self._selector.select(timeout_s):
            owner: _Worker | _Server = key.data
            if key.fd == owner.child.end_fd:
                dead.append(owner)
            elif isinstance(owner, _Worker):
                self._read_frames(owner)
            else:
                self._read_events(owner)
        for owner in dead:
            owner.child.process.wait()
            if isinstance(owner, _Worker):
                self._reap_worker(owner)
            else:
                self._reap_server(owner)
        self._kill_stalled()
        return self._take_finished()

    def _take_finished(self) -> list[tuple[int, list[bytes]]]:
        finished, self._finished = self._finished, []
        return finished

    @property
    def served(self) -> Weights:
        """The newest weights that an inference process has taken; a replacement starts with them."""
        return self._served

    def publish(self, path: Path | str, version: int | None = None) -> int:
        """Serve the weights of a checkpoint from the next batch on; returns their version.

        The version is the next one, or `version` where that is higher. What cannot be used is refused
        with a line in `events`, and what was served before stays.
        """
        wanted = self.version + 1 if version is None else max(version, self.version + 1)
        try:
            weights = Weights.copied(wanted, path)
        except OSError as error:
            self.events.append(f"checkpoint {path} cannot be read: {error.strerror}; weights {self.version} stay")
            return self.version
        self.version = wanted
        self._weights[wanted] = weights
        for server in self._servers:
            self._offer(server, weights)
        return self.version

    def _offer(self, server: _Server, weights: Weights) -> None:
        server.lines.post(cmd="weights", weights=weights.name, version=weights.version)

    def _heard(self, server: _Server, version: int, taken: bool) -> None:
        """Note what a server says of weights; what no server can be about to read any more is closed."""
        server.heard = max(server.heard, version)
        found = self._weights.get(version)
        if found is not None and taken and version > self._served.version:
            self._served = found
        elif found is not None and not taken and version > self._served.version:
            found.refused = True
        oldest = min([self._served.version, *(other.heard for other in self._servers)])
        for gone in [known for known in self._weights if known < oldest]:
            self._weights.pop(gone).close()

    def seat_other(self, path: Path) -> None:
        """Let a checkpoint's network hold the seats that `others` gives to one, from the next batch on."""
        self._others = [*self._others[-1:], str(path)]
        for server in self._servers:
            server.lines.post(cmd="other", weights=str(path))

    def counters(self) -> dict[str, int]:
        """Sums over all workers (prefix `worker_` for times and rows) and servers since the start."""
        total: dict[str, int] = {}
        for index in range(self.plan.workers):
            for name, value in self.segment.worker_counters(index).items():
                if name not in ("pid", "progress", "playing"):
                    key = f"worker_{name}" if name in ("rows", "busy_ns", "wait_ns") else name
                    total[key] = total.get(key, 0) + value
        for index in range(len(self.plan.devices)):
            for name, value in self.segment.server_counters(index).items():
                if name not in ("histogram", "waits", "version"):
                    total[name] = total.get(name, 0) + value
        return total

    def pids(self) -> dict[str, list[int]]:
        """Process ids of the living children, by kind."""
        return {
            "workers": [w.child.pid for w in self._workers],
            "servers": [s.child.pid for s in self._servers],
        }

    def close(self) -> list[tuple[int, list[bytes]]]:
        """End every child at once and return what was finished and not yet returned."""
        children = [worker.child for worker in self._workers] + [server.child for server in self._servers]
        for child in children:
            child.process.kill()
        for child in children:
            child.process.wait()
        for worker in self._workers:
            self._read_frames(worker)
        for child in children:
            child.close()
        self._workers.clear()
        self._servers.clear()
        self._selector.close()
        for weights in self._weights.values():
            weights.close()
        if self._memory.fd >= 0:
            self._memory.close()
            self._memory.fd = -1
        return self._take_finished()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._memory.fd >= 0:
            self.close()

    # --- units ------------------------------------------------------------------------------------

    def _next_unit(self) -> int | None:
        if self._returned:
            return self._returned.popleft()
        return next(self._fresh, None)

    def _grant(self) -> None:
        """Keep every worker's lanes fed with a little to spare; share the last units evenly."""
        if self.paused:
            return
        share = -(-self._left // len(self._workers))
        most = min(self.plan.lanes + self.plan.lanes // 8 + 1, share)
        for worker in self._workers:
            while (room := min(most - len(worker.outstanding), GRANT_UNITS)) > 0:
                units: list[int] = []
                while len(units) < room and (unit := self._next_unit()) is not None:
                    units.append(unit)
                if not units:
                    return
                try:
                    os.write(worker.grant_fd, b"".join(map(self._granted, units)))
                except (BlockingIOError, BrokenPipeError):
                    self._returned.extend(units)  # the pipe is full, or the worker is dead and about to be replaced
                    break
                worker.outstanding.update(units)

    def _granted(self, unit: int) -> bytes:
        """A unit as its worker reads it."""
        records = self.in_progress.get(unit)
        totals = [0] * _core.MAX_PLAYERS
        if records:
            last = _core.decode_record(records[-1])
            for seat, (before, score) in enumerate(zip(last["totals_before"], last["scores"], strict=True)):
                totals[seat] = before + score
        return GRANT.pack(unit, len(records or ()), *totals)

    def _read_frames(self, worker: _Worker) -> None:
        parts = [worker.buffer]
        while True:
            try:
                part = os.read(worker.record_fd, PIPE_BYTES)
            except BlockingIOError:
                break
            if not part:
                self._unregister(worker.record_fd)
                break
            parts.append(part)
        data = b"".join(parts)
        at = 0
        while len(data) - at >= FRAME.size:
            size, unit, last = FRAME.unpack_from(data, at)
            if len(data) - at - 4 < size:
                break
            record = data[at + FRAME.size : at + 4 + size]
            at += 4 + size
            if unit not in worker.outstanding:
                continue
            self._deaths.went_on()
            if not last:
                self.in_progress.setdefault(unit, []).append(record)
                continue
            worker.outstanding.remove(unit)
            self._left -= 1
            self._finished.append((unit, [*self.in_progress.pop(unit, []), record]))
        worker.buffer = data[at:]

    # --- deaths -----------------------------------------------------------------------------------

    def _unregister(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def _reap_worker(self, worker: _Worker) -> None:
        self._read_frames(worker)  # to the end: only then may its units be given out again
        self._unregister(worker.record_fd)
        self._unregister(worker.child.end_fd)
        played = self.segment.worker_counters(worker.index)["playing"] - 1
        to_blame = played in worker.outstanding and _ended_itself(worker)
        self.segment.reclaim_worker(worker.index)
        self._returned.extend(sorted(worker.outstanding))
        worker.outstanding.clear()
        try:
            self.events.append(self._deaths.count(f"worker {worker.index}", worker.child))
            if to_blame:
                self._blame(played, worker)
            self._workers[worker.index] = self._start_worker(worker.index)
        finally:
            if self._workers[worker.index] is not worker:
                worker.child.close()

    def _blame(self, unit: int, worker: _Worker) -> None:
        """Note that playing a unit has ended its worker. Raises WorkerDied where it is given up for that."""
        self._blamed[unit] += 1
        if self._blamed[unit] < MOST_BLAMED:
            return
        config, games = self.config, self.config.games is not None
        others = config.others.replace(f"{OLDER}:", f"{self._others[-1]}:") if self._others else config.others
        alone = replace(
            config, rounds=None if games else 1, games=1 if games else None, first=unit, others=others, follow=False,
            checkpoint=Path(self._served.path) if self._served.path else None, out=None, json=False,
        )  # fmt: skip
        words = worker.child.stuck or f"ended with status {worker.child.status}"
        raise WorkerDied(
            f"{'game' if games else 'round'} {unit} has ended {MOST_BLAMED} workers, of which the last {words}: "
            f"{worker.child.last_words().splitlines()[-1]}; it is given up, and this run with it, whose finished "
            f"rounds are kept. Play it alone with: python -m shmzero.selfplay {to_flags(alone)}"
        )

    def _reap_server(self, server: _Server) -> None:
        self._read_events(server)
        self._unregister(server.lines.fileno())
        self._unregister(server.child.end_fd)
        self.segment.reclaim_server(server.index)
        self.events.append(
            self._deaths.count(f"inference process {server.index} ({self.plan.devices[server.index]})", server.child)
        )
        replacement = self._start_server(server.index, server.epoch + 1)
        self._servers[server.index] = replacement
        server.child.close()

    def _read_events(self, server: _Server) -> None:
        events = server.lines.receive()
        if server.lines.closed:
            self._unregister(server.lines.fileno())
        for event in events:
            for weights in self._weights.values():  # a message names the file, not our copy
                if weights.name is not None and weights.path is not None and "message" in event:
                    event["message"] = event["message"].replace(weights.name, weights.path)
            if event["event"] == "error":
                raise ConfigError(event["message"])
            if event["event"] == "ready":
                server.ready = True
                self.events.append(f"inference process {server.index} serves {event['description']}")
            elif event["event"] in ("refused", "compiled"):
                self.events.append(f"inference process {server.index}: {event['message']}")
                if "other" in event:
                    self._others = [path for path in self._others if path != event["other"]]
                elif "version" in event:
                    self._heard(server, event["version"], taken=False)
            elif event["event"] == "weights":
                self._heard(server, event["version"], taken=True)
                self.events.append(f"inference process {server.index} serves weights {event['version']}")

    def _kill_stalled(self) -> None:
        """End children that are stuck; what becomes of them then is a death like any other."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        for worker in self._workers:
            if line := worker.child.end_stuck(self._why_stuck(worker)):
                self.events.append(line)
        for server in self._servers:
            refused = self.segment.server_counters(server.index)["refused"]
            if refused > self._refused[server.index]:
                number = refused - self._refused[server.index]
                self.events.append(
                    f"inference process {server.index} mended {number} slots whose words neither it nor a worker "
                    "wrote: something else writes into the shared memory"
                )
                self._refused[server.index] = refused
            if line := server.child.end_stuck(self._why_server_stuck(server)):
                self.events.append(line)

    def _why_stuck(self, worker: _Worker) -> str | None:
        """What a worker has not done for too long, None where it may go on."""
        states = set(self.segment.slot_states(worker.index))
        # With nothing answered and something held by a server it waits; if for too long, that is the server's.
        waits = bool(states & HELD) and states <= HELD | {"free"}
        worker.child.watch.look(
            self.segment.worker_counters(worker.index)["progress"], bool(worker.outstanding) and not waits
        )
        limit_s = worker.child.watch.stuck_s(self.config.stall_s)
        return f"did nothing for {limit_s:g} s with work to do" if limit_s else None

    def _why_server_stuck(self, server: _Server) -> str | None:
        """What an inference process has not done for too long, None where it may go on."""
        stall_s = self.config.stall_s
        batches = self.segment.server_counters(server.index)["batches"]
        held = self.segment.held_slots(server.index)
        server.child.watch.look((server.ready, batches), not server.ready or bool(held))
        if limit_s := server.child.watch.stuck_s(stall_s):
            if server.ready:
                return f"finished no batch for {limit_s:g} s"
            return f"did not begin to serve within {limit_s:g} s"
        known, server.held = server.held, {}
        for request in held:
            watch, before = server.held[request] = known.get(request) or (Watch(moved=True), batches)
            watch.look(None, has_work=True)
            # It takes the oldest requests first: within so many batches every one of today's is answered.
            if watch.stuck_s(stall_s) and batches - before > self._batches_for_all:
                worker, slot, _ = request
                return f"passed over slot {slot} of worker {worker} in {batches - before} batches and {stall_s:g} s"
        return None


def _ended_itself(worker: _Worker) -> bool:
    """Whether a worker that is gone ended by what it did, and not by somebody's signal."""
    status = worker.child.status
    return bool(worker.child.stuck) or status > 0 or -status in CRASHES
