"""Which units are finished, against a set of them."""

from __future__ import annotations

import random
from itertools import islice

from shmzero.runs.ledger import UnitLedger


def test_unit_ledger_yields_what_is_missing_in_any_order() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        finished = rng.choices(range(200), k=rng.randrange(300))
        ledger = UnitLedger(finished)
        expected = sorted(set(range(200)) - set(finished))
        assert list(islice(ledger.missing(), len(expected) + 1)) == [*expected, 200]
        for limit in (0, 1, rng.randrange(300), 200):
            assert ledger.count_below(limit) == sum(unit < limit for unit in set(finished))


def test_unit_ledger_yields_nothing_that_was_finished_since_it_was_asked() -> None:
    ledger = UnitLedger([2])
    units = ledger.missing()
    for expected in (0, 1):
        unit = next(units)
        assert unit == expected
        ledger.add(unit)
    assert next(units) == 3  # 2 was there from the start, and the range has grown over it
    ledger.add(4)
    ledger.add(5)
    assert next(units) == 6


def test_unit_ledger_keeps_one_range_for_whatever_has_no_gap() -> None:
    ledger = UnitLedger(range(1, 10_000))
    for unit in (20_001, 20_000, 20_002, 0):
        ledger.add(unit)
    assert (ledger._firsts, ledger._ends) == ([0, 20_000], [10_000, 20_003])
