"""The process that plays matches of a checkpoint while a run trains."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from shmzero.errors import ConfigError, RecordError
from shmzero.matches.messages import COMMANDS, AgentRating, CheckpointRated, MatchesSpec, MatchPlayed
from shmzero.matches.words import GATE
from shmzero.processes.child import child_main
from shmzero.processes.line_socket import LineSocket
from shmzero.processes.watch import Pulse
from shmzero.runs.checkpoints import numbered

MATCH_SEED = 20_011
"""Deals of matches: always the same ones, so that a curve moves for the agent's reasons."""
OLDER_RATED = 3
"""Older checkpoints that are rated beside the newest."""


def run(spec: MatchesSpec) -> int:
    """The process: every opponent in turn. Returns the exit code."""
    from shmzero.matches.agents import make_agent
    from shmzero.matches.duplicate import play_match

    os.nice(spec.niceness)
    parent, pulse = LineSocket(spec.control_fd, COMMANDS), Pulse(spec.pulse_fd)
    threads = spec.threads
    try:
        hero = make_agent(f"{spec.checkpoint}:policy", threads=threads)
        for name in spec.opponents:
            villain = make_agent(name, threads=threads)
            for mode in spec.modes:
                result = play_match(
                    hero,
                    villain,
                    deals=spec.deals,
                    players=spec.players,
                    cards=spec.cards,
                    trump=spec.trump,
                    seed=MATCH_SEED,
                    mode="one" if mode == GATE else mode,
                    threads=threads,
                    games=spec.games,
                    show=lambda rounds: pulse.beat(),
                )
                played = MatchPlayed(
                    opponent=name,
                    mode=mode,
                    games=spec.games,
                    deals=result.deals,
                    mean=result.mean,
                    low=result.low,
                    high=result.high,
                    exact_bid=result.exact_bid,
                    win_share=result.win_share,
                    fair_share=result.fair_share,
                    steps=int(spec.checkpoint.stem),
                    seconds=result.seconds,
                )
                parent.send(played)
        if spec.rate:
            parent.send(rate_checkpoints(spec, pulse))
    except (ConfigError, RecordError) as error:
        print(error, file=sys.stderr)  # the last words, which the parent says
        return 1
    return 0


def rate_checkpoints(spec: MatchesSpec, pulse: Pulse) -> CheckpointRated:
    """Rate the newest checkpoint, older ones spread over the run, and the opponents; writes ratings.json."""
    from shmzero.matches.agents import Agent, make_agent
    from shmzero.matches.pool import rate
    from shmzero.matches.rating import ANCHOR

    newest = spec.checkpoint
    older = [path for path in numbered(newest.parent) if int(path.stem) < int(newest.stem)]
    spread = {older[len(older) * i // OLDER_RATED] for i in range(OLDER_RATED)} if older else set()

    def named(path: Path) -> Agent:
        pulse.beat()
        return dataclasses.replace(make_agent(f"{path}:policy", threads=spec.threads), name=f"step {int(path.stem)}")

    pool = [named(path) for path in (newest, *sorted(spread))]
    pool += [make_agent(name, threads=spec.threads) for name in sorted({ANCHOR, *spec.opponents})]
    table = rate(pool, deals=spec.deals_rated, players=spec.players, cards=spec.cards, trump=spec.trump,
                 games=spec.games, seed=MATCH_SEED, threads=spec.threads,
                 show=lambda rounds: pulse.beat())  # fmt: skip
    table.save(newest.parent.parent)
    agents = {name: AgentRating(r.rating, r.low, r.high) for name, r in table.agents.items()}
    own = agents[f"step {int(newest.stem)}"]
    return CheckpointRated(int(newest.stem), spec.deals_rated, own.rating, own.low, own.high, agents)


if __name__ == "__main__":
    child_main(MatchesSpec, run)
