"""Matches while a run trains: a child process plays a checkpoint against opponents, and its results are collected.

It runs beside self-play at low priority and may be killed: a match that is lost is played again when
the next one is due. Read next: matches/process.py (the process), training/gate.py (what one kind of match decides).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shmzero.machine import cores
from shmzero.matches.messages import EVENTS, MatchesSpec, MatchPlayed
from shmzero.matches.words import GATE, Mode
from shmzero.processes.child import Child, start_child, starting
from shmzero.processes.line_socket import LineSocket
from shmzero.processes.watch import Pulse
from shmzero.runs.checkpoints import newest_checkpoint
from shmzero.training.config import TrainConfig
from shmzero.training.gate import Gate

FINAL_DEALS = 1000
ROUNDS_OF_A_GAME = 10
"""About so many: with whole games a match has so many fewer deals."""
NICENESS = 5
STALL_S = 120.0
"""Matches that get nowhere for so long are ended."""


class MatchRunner:
    """Starts matches when they are due and collects their results."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.last: dict[str, dict[str, Any]] = {}
        """The last match against each opponent, one seat against all others."""
        self.rating: dict[str, Any] | None = None
        """The last rating."""
        self.failures = 0
        """Processes that ended before their matches did."""
        self.gate = Gate(folder)
        """Which checkpoint self-play has. Without the setting `gate` nothing is played for it."""
        self._matched: int | None = None  # step of the checkpoint that played last: once more says nothing new
        self._playing: int | None = None  # that of the one that plays now, None where it plays the gate
        self.broken_off = False
        """Whether the last matches were left before their end."""
        self._due_s = config.matches.evaluate_s
        self._child: Child | None = None

    @property
    def wanted(self) -> bool:
        """Whether the run's checkpoints are matched or rated at all."""
        return bool(self.config.matches.match_opponents) or self.config.matches.rating

    def recall(self, lines: list[dict[str, Any]]) -> None:
        """Take up what the metrics of an earlier session hold."""
        for line in lines:
            self._note(line)
        played = [line["match"]["steps"] for line in lines if line.get("match", {}).get("mode") == "one"]
        self._matched = played[-1] if played else None
        self.gate.recall(lines)

    def poll(self, elapsed_s: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
        """Lines for the metrics. Starts a match when it is due; `elapsed_s` is the run's time."""
        lines = self._read()
        self._end_stuck(say)
        if self._child is not None and not self._child.is_running():
            lines += self._read()
            self._reap(say)
        # In turns: where either lasts until it is due again, the other would never be played.
        gate_first = self._playing is not None
        for gate in (gate_first, not gate_first):
            if self._child is None:
                self._start_gate() if gate else self._start_due(elapsed_s)
        return lines

    def _start_due(self, elapsed_s: float) -> None:
        """Play the newest checkpoint against every opponent, where that is due and says something new."""
        newest = newest_checkpoint(self.folder)
        if (
            not self.config.matches.evaluate_s
            or elapsed_s < self._due_s
            or newest is None
            or int(newest.stem) == self._matched
        ):
            return
        self._due_s = elapsed_s + self.config.matches.evaluate_s
        self._playing = int(newest.stem)
        self._start(self.config.matches.deals, NICENESS, rate=self.config.matches.rating)

    def _start_gate(self) -> None:
        """Play the newest checkpoint against the one that self-play has, where the gate asks for that."""
        if self.config.matches.gate and self.gate.has_challenger():
            self._playing = None
            if best := self.gate.try_challenger():
                self._start(self.config.matches.deals, NICENESS, modes=(GATE,), against=[f"{best}:policy"])

    def finish(self, say: Callable[[str], None], stopped: Callable[[], bool]) -> list[dict[str, Any]]:
        """Play the last checkpoint's matches, both ways, rate it, and wait for that; lines for the metrics."""
        self.kill()
        self._start(FINAL_DEALS, 0, modes=("one", "rest"), rate=self.config.matches.rating, threads=cores())
        lines: list[dict[str, Any]] = []
        if self._child is not None:
            say(f"the last checkpoint plays its matches against {self.config.matches.match_opponents or 'older ones'}")
        while self._child is not None and self._child.is_running():
            if stopped():
                say("the last matches are broken off: the same command plays them")
                self.broken_off = True
                self.kill()
                break
            lines += self._read()
            self._end_stuck(say)
            time.sleep(0.05)
        lines += self._read()
        if self._child is not None:
            self._reap(say)
        return lines

    def _end_stuck(self, say: Callable[[str], None]) -> None:
        """End matches that get nowhere; what becomes of them then is a failure like any other."""
        if self._child is None:
            return
        self._child.watch.look(self._pulse.value, has_work=True)
        limit_s = self._child.watch.stuck_s(STALL_S)
        if line := self._child.end_stuck(f"got nowhere for {limit_s:g} s" if limit_s else None):
            say(line)

    def kill(self) -> None:
        """End a match that is being played."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _start(
        self,
        deals: int,
        niceness: int,
        modes: tuple[Mode, ...] = ("one",),
        rate: bool = False,
        against: list[str] | None = None,
        threads: int = 1,
    ) -> None:
        """`threads`: one beside self-play and learner, all cores where nothing else runs."""
        checkpoint = newest_checkpoint(self.folder)
        opponents = against or self.config.matches.opponents()
        if checkpoint is None or not (opponents or rate):
            return

        def units(deals: int) -> int:
            return max(2, deals // ROUNDS_OF_A_GAME) if self.config.deals.whole_games else deals

        name = "the matches"
        with starting(name) as held, ExitStack() as theirs:
            self._lines, control_fd = LineSocket.pair(EVENTS, held, theirs)
            self._pulse = Pulse()
            held.callback(self._pulse.close)
            fds = [control_fd, self._pulse.fd]
            spec = MatchesSpec(
                control_fd=control_fd,
                pulse_fd=self._pulse.fd,
                checkpoint=checkpoint,
                opponents=tuple(opponents),
                modes=modes,
                deals=units(deals),
                deals_rated=units(self.config.matches.deals),
                players=self.config.deals.players,
                cards=self.config.deals.cards,
                trump=self.config.deals.trump,
                games=self.config.deals.whole_games,
                niceness=niceness,
                rate=rate,
                threads=threads,
            )
            self._child = start_child(name, "shmzero.matches.process", spec, fds, threads, held)
        self._child.watch.look(self._pulse.value, has_work=False)

    def _read(self) -> list[dict[str, Any]]:
        """What the process has told since the last call, as lines of the metrics."""
        lines: list[dict[str, Any]] = []
        for event in self._lines.receive() if self._child is not None else ():
            if isinstance(event, MatchPlayed):
                self.gate.judge(event)
            name = "match" if isinstance(event, MatchPlayed) else "rating"
            lines.append({name: dataclasses.asdict(event)})
            self._note(lines[-1])
        return lines

    def _note(self, line: dict[str, Any]) -> None:
        """Keep what a line of the metrics says of the last match against each opponent, and of the last rating."""
        if line.get("match", {}).get("mode") == "one":
            self.last[line["match"]["opponent"]] = line["match"]
        self.rating = line.get("rating", self.rating)

    def _reap(self, say: Callable[[str], None]) -> None:
        """Clear away a process that has ended; one that failed is counted and said."""
        assert self._child is not None
        child, self._child = self._child, None
        words, status = child.last_words(), child.status
        child.close()
        if status:
            self.failures += 1
            say(f"the matches ended with status {status}: {words.splitlines()[-1]}")
        elif self._playing is not None:
            self._matched = self._playing
