"""The golden files still say what the code does; `python -m tests.golden --write` rewrites them."""

from __future__ import annotations

import pytest

from tests.golden import FILES, FOLDER
from tests.support import oracle


@pytest.mark.parametrize("name", FILES)
def test_golden_file_is_what_the_code_does_now(name: str) -> None:
    assert FILES[name]() == (FOLDER / name).read_text()


def test_golden_playthroughs_score_as_the_oracle_does() -> None:
    """The stored rounds, read back from the text alone, are rounds that the oracle agrees with."""
    for text in (FOLDER / "playthroughs.txt").read_text().split("\n\n"):
        lines = text.strip().splitlines()
        words = lines[0].replace(",", "").split()
        trump, dealer = words[words.index("trump") + 1], int(words[words.index("dealer") + 1])
        hands = [line.split(": ")[1] for line in lines if line.startswith("  seat")]
        moves = [
            line.split()[-1] for line in lines if line.startswith("  ") and not line.startswith(("  seat", "  --"))
        ]
        truth = oracle.position(" | ".join(hands), None if trump == "none" else trump, dealer, " ".join(moves))
        assert truth.phase == "done"
        assert lines[-1] == f"bids {truth.bids}, won {truth.tricks_won}, scores {truth.scores()}"
