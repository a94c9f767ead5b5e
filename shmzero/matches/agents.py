"""Who plays a match: a bot of the core, or a search over a checkpoint or an evaluator."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.files import is_folder
from shmzero.game.bots import BUILT_IN, built_in_bot
from shmzero.game.masks import masks_of
from shmzero.inference.messages import DeviceSpec
from shmzero.machine import cores
from shmzero.mcts.config import SearchConfig
from shmzero.mcts.search import Evaluator
from shmzero.runs.checkpoints import newest_checkpoint
from shmzero.settings import check_number

Rows = tuple[NDArray[np.float32], NDArray[np.float32]]

DEFAULT_SEARCH = SearchConfig(determinizations=3, simulations=30)
"""The search of a checkpoint that is named without a suffix."""
CPU_BATCH = 512
CUDA_BATCH = 4096


@dataclass(frozen=True)
class Agent:
    """Who plays: a bot of the core, or a search over an evaluator."""

    name: str
    config: _core.BotConfig | SearchConfig
    evaluate: Callable[[NDArray[np.float16], NDArray[np.uint64]], Rows] | None = None
    """(policies [B, 52], values [B, 1]) of features [B, 256] and mask words [B]; None for a bot."""

    def rows_per_step(self, players: int) -> int:
        if isinstance(self.config, SearchConfig):
            return int(self.config.to_core().rows_per_step(players))
        return 0

    def to_core(self) -> _core.BotConfig | _core.SearchConfig:
        return self.config.to_core() if isinstance(self.config, SearchConfig) else self.config


AgentLike = str | Agent | tuple[Evaluator, SearchConfig]


def make_agent(spec: AgentLike, device: str = "cpu", threads: int | None = None) -> Agent:
    """The agent that a name, a checkpoint's path or an (evaluator, SearchConfig) stands for.

    Names: see config.built_in_bot. A training run's folder stands for its newest checkpoint. A path may end in
    `:policy` (no search) or `:DxS`; alone it is searched 3x30. A search may end in `+halving` (its root rule),
    `+maximise` (max^n) and `+solverN` (exact leaves of at most N cards in all hands).
    Agents play their best action, without noise or temperature. `device` runs checkpoints, on a
    CPU in so many `threads` (default: all cores). Raises ConfigError.
    """
    if isinstance(spec, Agent):
        return spec
    if isinstance(spec, tuple):
        evaluator, search = spec
        if search.known_hands:
            raise ConfigError("known_hands is set; a match never looks at hidden hands")
        return Agent(type(evaluator).__name__, search, _widened(evaluator))
    bot = built_in_bot(spec)
    return Agent(spec, bot) if bot else _checkpoint(spec, device, threads or cores())


def _checkpoint(spec: str, device: str, threads: int) -> Agent:
    path, search = spec, DEFAULT_SEARCH
    head, colon, suffix = spec.rpartition(":")
    if colon and suffix == "policy":
        path, search = head, SearchConfig(simulations=0)
    elif colon and (found := re.fullmatch(r"(\d{1,9})x(\d{1,9})(\+halving)?(\+maximise)?(?:\+solver(\d+))?", suffix)):
        path, search = (
            head,
            SearchConfig(
                determinizations=int(found[1]),
                simulations=int(found[2]),
                root="halving" if found[3] else "puct",
                opponents="maximise" if found[4] else "policy",
                solved_cards=int(found[5] or 0),
            ),
        )
        check_number(f"simulations of {spec}", search.simulations, 1, 10**6)
    if is_folder(Path(path)):  # of a training run: its newest
        path = str(newest_checkpoint(Path(path)) or path)
    if not Path(path).is_file():
        raise ConfigError(
            f"agent {spec!r} is not built in ({BUILT_IN}), and there is no checkpoint file {path!r}; "
            "allowed after a file: :policy or :DxS, such as :3x30, and +halving, +maximise, +solver8 in this order"
        )
    return Agent(spec, search, _served(path, device, threads, search.simulations > 0))


def _served(
    path: str, device: str, threads: int, searched: bool
) -> Callable[[NDArray[np.float16], NDArray[np.uint64]], Rows]:
    """A checkpoint as an inference process would have it, but never compiled.

    On a CPU each thread runs batches of its own: torch's own threads wait for each other within every
    product, and stall where other programs use the cores. Batches do not depend on the threads.
    """
    from shmzero.inference.factory import make_net_device

    on_cpu = device == "cpu"
    batch = CPU_BATCH if on_cpu else CUDA_BATCH
    spec = DeviceSpec(device=device, max_batch=batch, threads=1, checkpoint=path, searched=searched)
    nets = [make_net_device(spec) for _ in range(threads if on_cpu else 1)]
    pool = ThreadPoolExecutor(len(nets), "arena-net")

    def evaluate(features: NDArray[np.float16], masks: NDArray[np.uint64]) -> Rows:
        policies = np.empty((len(masks), _core.NUM_ACTIONS), np.float32)
        values = np.empty((len(masks), 1), np.float32)
        starts = range(0, len(masks), batch)

        def serve(index: int) -> None:
            net = nets[index]
            staging = net.staging(0)
            for start in starts[index :: len(nets)]:
                part = slice(start, min(start + batch, len(masks)))
                rows = part.stop - start
                staging.features[:rows], staging.masks[:rows] = features[part], masks[part]
                net.launch(0, rows)
                net.wait(0)
                policies[part], values[part] = staging.policies[:rows], staging.values[:rows]

        if len(nets) == 1:
            serve(0)  # CUDA's current device belongs to the thread that made the net
        else:
            list(pool.map(serve, range(min(len(nets), len(starts)))))
        return policies, values

    return evaluate


def _widened(evaluator: Evaluator) -> Callable[[NDArray[np.float16], NDArray[np.uint64]], Rows]:
    def evaluate(features: NDArray[np.float16], masks: NDArray[np.uint64]) -> Rows:
        policies, values = evaluator.evaluate_many(features.astype(np.float32), masks_of(masks))
        return np.asarray(policies, np.float32), np.asarray(values, np.float32)

    return evaluate
