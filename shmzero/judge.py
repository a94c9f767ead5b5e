"""Matches while a run trains: a child process that plays a checkpoint against built-in opponents.

It runs beside self-play at low priority and may be killed: a match that is lost is played again when
the next one is due. What a match is: arena.py.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmzero.config import TrainConfig
from shmzero.errors import ConfigError
from shmzero.inference import Control, child_main
from shmzero.launch import Child, start_child
from shmzero.learner import CHECKPOINT_FOLDER

FINAL_DEALS = 1000
MATCH_SEED = 20_011
"""Deals of matches: always the same ones, so that a curve moves for the agent's reasons."""
NICENESS = 5


def match_words(match: dict[str, Any]) -> str:
    """A match in one line."""
    return (
        f"{match['mean']:+.2f} points a round ({match['low']:+.2f} to {match['high']:+.2f}) against "
        f"{match['opponent']}, {match['deals']} deals, {match['mode']} seat"
    )


def most_likely(pairs: list[tuple[int, float]]) -> int:
    """The value with the highest weight, the largest of several."""
    return max(pairs, key=lambda pair: (pair[1], pair[0]))[0]


class Judge:
    """The parent's end: starts matches when they are due and collects their results."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.words = ""
        """The last result, in short."""
        self._due_s = config.evaluate_s
        self._child: Child | None = None
        self._received = b""

    def poll(self, elapsed_s: float) -> list[dict[str, Any]]:
        """Lines for the metrics. Starts a match when it is due; `elapsed_s` is the run's time."""
        lines = self._read()
        if self._child is not None and self._child.process.poll() is not None:
            lines += self._read()
            self._bury()
        if self._child is None and self.config.evaluate_s and elapsed_s >= self._due_s:
            self._due_s = elapsed_s + self.config.evaluate_s
            self._start(self.config.deals, NICENESS)
        return lines

    def finish(self, say: Callable[[str], None]) -> list[dict[str, Any]]:
        """Play the last checkpoint's matches, both ways, and wait for them; lines for the metrics."""
        self.kill()
        self._start(FINAL_DEALS, 0, modes=("one", "rest"))
        lines: list[dict[str, Any]] = []
        while self._child is not None and self._child.process.poll() is None:
            lines += self._read()
            time.sleep(0.05)
        lines += self._read()
        if self._child is not None:
            words, status = self._child.last_words(), self._child.process.returncode
            self._bury()
            if status:
                say(f"the last matches ended with status {status}: {words.splitlines()[-1]}")
        return lines

    def kill(self) -> None:
        """End a match that is being played."""
        if self._child is not None:
            self._child.process.kill()
            self._child.process.wait()
            self._bury()

    def _start(self, deals: int, niceness: int, modes: tuple[str, ...] = ("one",)) -> None:
        checkpoint = max((self.folder / CHECKPOINT_FOLDER).glob("[0-9]*.safetensors"), default=None)
        opponents = [name for name in self.config.opponents.split(",") if name]
        if checkpoint is None or not opponents:
            return
        ours, theirs = socket.socketpair()
        spec = {
            "control_fd": theirs.fileno(),
            "checkpoint": str(checkpoint),
            "opponents": opponents,
            "modes": list(modes),
            "deals": deals,
            "players": most_likely(self.config.self_play(0, None).play_settings().players),
            "cards": str(most_likely(self.config.self_play(0, None).play_settings().cards)),
            "niceness": niceness,
        }
        with theirs:
            self._child = start_child("shmzero.judge", spec, [theirs.fileno()], threads=1)
        ours.setblocking(False)
        self._socket = ours

    def _read(self) -> list[dict[str, Any]]:
        if self._child is None:
            return []
        try:
            while part := self._socket.recv(65536):
                self._received += part
        except (BlockingIOError, ConnectionResetError):
            pass
        *lines, self._received = self._received.split(b"\n")
        found = [json.loads(line) for line in lines]
        for line in found:
            if line.get("event") == "error":
                raise ConfigError(line["message"])
            match = line["match"]
            self.words = f"{match['mean']:+.2f}±{(match['high'] - match['low']) / 2:.2f} vs {match['opponent']}"
        return found

    def _bury(self) -> None:
        assert self._child is not None
        self._socket.close()
        self._child.close()
        self._child = None
        self._received = b""


def run(spec: dict[str, Any]) -> int:
    """The process: every opponent in turn. Returns the exit code."""
    import torch

    from shmzero import SearchConfig
    from shmzero.arena import make_agent, play_match
    from shmzero.evaluators import NetEvaluator
    from shmzero.net import load_checkpoint

    os.nice(spec["niceness"])
    torch.set_num_threads(1)
    control = Control(spec["control_fd"])
    try:
        net = load_checkpoint(spec["checkpoint"])
        hero = make_agent((NetEvaluator(net), SearchConfig(simulations=0)))
        for name in spec["opponents"]:
            for mode in spec["modes"]:
                started = time.monotonic()
                result = play_match(
                    hero, make_agent(name), deals=spec["deals"], players=spec["players"],
                    cards=spec["cards"], seed=MATCH_SEED, mode=mode,
                )
                match = {
                    "opponent": name, "mode": mode, "deals": spec["deals"], "mean": result.mean,
                    "low": result.low, "high": result.high, "steps": int(Path(spec["checkpoint"]).stem),
                    "seconds": time.monotonic() - started,
                }
                control.send(match=match)
    except ConfigError as error:
        control.send(event="error", message=str(error))
        return 2
    return 0


if __name__ == "__main__":
    child_main(run)
