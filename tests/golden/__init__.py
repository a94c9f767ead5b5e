"""Golden files: a few whole rounds and two search trees, as text that a person can read and check.

`python -m tests.golden` says what differs, `python -m tests.golden --write` rewrites all of them; the difference is then reviewed
like code. `playthroughs()` and `searches()` make the text; tests/game/test_golden.py compares.

Beside them lies what later versions have to go on with: run folders (old_runs.py) and flags of the commands (flags.json).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import shmzero
from tests.support import oracle
from tests.support.fakes import HashEvaluator

FOLDER = Path(__file__).parent


def _suit_text(trump: int | None) -> str:
    return "none" if trump is None else oracle.SUITS[trump]


def _action_text(r: shmzero.Round, action: int) -> str:
    return f"bid {action}" if r.phase == "bidding" else oracle.card_text(action)


def playthrough(players: int, cards: int, trump: int | None, dealer: int, seed: int) -> str:
    """One dealt round played by a fixed rule of thumb, with everything the public face shows at every step."""
    r = shmzero.Round.deal(players=players, cards=cards, trump=trump, dealer=dealer, seed=seed)
    lines = [
        f"deal: players {players}, cards {cards}, trump {_suit_text(trump)}, dealer {dealer}, seed {seed}",
        *(f"  seat {seat}: {oracle.cards_text(hand)}" for seat, hand in enumerate(r.hands)),
    ]
    ply = 0
    while r.phase != "done":
        legal = r.legal_actions()
        action = (
            legal[(7 * ply + 3) % len(legal)] if r.phase == "playing" else legal[min(len(legal) - 1, (ply + 1) % 3)]
        )
        f = r.features()
        lines.append(
            f"{r.phase} seat {r.seat}: legal [{' '.join(_action_text(r, a).replace('bid ', '') for a in legal)}]"
            f" features {np.count_nonzero(f)} non-zero, sum {f.astype(np.float64).sum():.4f}"
        )
        lines.append(f"  {_action_text(r, action)}")
        r.apply(action)
        ply += 1
        if r.phase != "bidding" and not r.trick and len(r.played):
            shown = " ".join(
                f"{s}:{''.join(oracle.SUITS[v] for v in suits)}" for s, suits in enumerate(r.voids) if suits
            )
            lines.append(f"  -- trick taken; won {r.tricks_won}, voids {shown or 'none'}")
    lines.append(f"bids {r.bids}, won {r.tricks_won}, scores {r.scores()}")
    return "\n".join(lines) + "\n"


def search_text(name: str, r: shmzero.Round, config: shmzero.SearchConfig, seed: int) -> str:
    """The root of one search with the hash evaluator: visits, Q and policy of each legal action."""
    result = shmzero.search(r, HashEvaluator(), config, seed=seed)
    lines = [
        f"search: {name}, seat {r.seat} {r.phase}, hand {oracle.cards_text(r.hands[r.seat])}",
        f"  worlds {config.determinizations}, simulations {config.simulations}, root {config.root}, opponents {config.opponents},"
        f" target {config.target}, in flight {config.leaves_in_flight}",
    ]
    for a in r.legal_actions():
        lines.append(
            f"  {_action_text(r, a):6} visits {result.visits[a]:4d}  q {result.q[a]:.3f}  policy {result.policy[a]:.3f}"
        )
    lines.append(f"  value {result.value:.3f}, simulations {result.simulations}, evaluations {result.evaluations}")
    return "\n".join(lines) + "\n"


def playthroughs() -> str:
    return "\n".join(
        [
            playthrough(3, 4, 0, 1, 1),
            playthrough(4, 5, 1, 0, 7),
            playthrough(5, 2, None, 3, 3),
            playthrough(8, 6, 3, 7, 5),
        ]
    )


def searches() -> str:
    def dealt(seed: int, actions: int) -> shmzero.Round:
        r = shmzero.Round.deal(players=4, cards=5, trump=2, dealer=0, seed=seed)
        for ply in range(actions):
            r.apply(r.legal_actions()[ply % len(r.legal_actions())])
        return r

    config = shmzero.SearchConfig
    return "\n".join(
        [
            search_text("first bid", dealt(1, 0), config(determinizations=3, simulations=30), 1),
            search_text("first lead", dealt(2, 4), config(determinizations=3, simulations=30), 2),
            search_text(
                "four in flight", dealt(3, 4), config(determinizations=2, simulations=32, leaves_in_flight=4), 3
            ),
            search_text("halving", dealt(4, 0), config(determinizations=2, simulations=32, root="halving"), 4),
            search_text(
                "max^n",
                dealt(6, 4),
                config(determinizations=2, simulations=40, opponents="maximise", target="improved"),
                5,
            ),
        ]
    )


FILES = {"playthroughs.txt": playthroughs, "searches.txt": searches}
