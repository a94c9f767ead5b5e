"""Who is stuck and who is only slow, and what becomes of those who are."""

from __future__ import annotations

import numpy as np

from shmzero import _core
from shmzero.config import SearchConfig, built_in_bot, play_settings
from shmzero.evaluators import HashEvaluator


def test_match_of_slow_bots_lets_its_caller_look_around() -> None:
    """What is asked and how it ends is the same as of one that does not."""
    settings = play_settings(SearchConfig(), 3, "3", "2")
    bot = built_in_bot("mc100000")
    assert bot is not None
    slow = built_in_bot("mc500000")
    assert slow is not None
    run = _core.MatchRun(settings, [slow], [[0] * 8], lanes=3, threads=1)
    looks = 0
    while (blocks := run.step()) is not None:
        assert blocks == []
        looks += 1
    assert looks > 3 and run.num_rounds == 3
    searched = play_settings(SearchConfig(), 3, "3", "2").search
    agents = [searched, bot]
    asked: list[list[int]] = []
    for threads in (1, 2):
        run, evaluator = _core.MatchRun(settings, agents, [[0, 1, 1, 0, 0, 0, 0, 0]] * 2, lanes=6, threads=threads), HashEvaluator()
        asked.append([])
        while (blocks := run.step()) is not None:
            for agent, features, masks in blocks:
                asked[-1].append(len(masks))
                wide = (masks[:, None] >> np.arange(52, dtype=np.uint64) & np.uint64(1)).astype(bool)
                run.answer(agent, *evaluator.evaluate_many(features.astype(np.float32), wide))
    assert asked[0] == asked[1]
