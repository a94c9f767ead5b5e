"""Presets of training, and its settings out of a TOML file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmzero.game.deals import DEALS
from shmzero.settings import read_settings
from shmzero.training.config import TrainConfig

TRAIN_PRESETS: dict[str, TrainConfig] = {
    "smoke": TrainConfig(),
    "laptop": TrainConfig.of(
        minutes=60,
        net="small",
        critic_net="small",
        learning_rate=5e-4,
        buffer=500_000,
        compile=True,
        checkpoint_s=120,
        evaluate_s=300,
        match_opponents="threshold,mc90",
        rating=True,
    ),
    "workstation": TrainConfig.of(
        minutes=600,
        **DEALS["broad"],
        net="small",
        critic_net="small",
        learning_rate=5e-4,
        buffer=2_000_000,
        batch=4096,
        replay_ratio=1,
        lanes=8192,
        compile=True,
        publish_s=5,
        checkpoint_s=600,
        evaluate_s=1800,
        match_opponents="threshold,mc90,mc900",
        rating=True,
    ),
    "plan": TrainConfig.of(
        minutes=None,
        rounds=4_920_000,
        **DEALS["plan"],
        targets="visits",
        search="1x15:92,2x25:100,3x35:100,4x45:100,5x50:100",
        random_moves=0.25,
        net="plan",
        buffer=500_000,
        batch=512,
        replay_ratio=4,
        learning_rate=1e-3,
        value_share=1.0,
        ema=0.999,
        compile=True,
        publish_s=10,
        checkpoint_s=600,
        evaluate_s=1800,
        match_opponents="threshold,mc90",
        rating=True,
    ),
}
"""Settings by name. `plan`: 500 iterations of 10,000 rounds, of which the first 20 rise from 2,000 on: its first
hundred come to 920,000 rounds, and with each hundred the search grows."""


def read_train_toml(path: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The settings of a TOML file, as TrainConfig.of takes them; see read_settings.

    A file that names rounds and no minutes is of a run without a time.
    """
    settings = read_settings(path, TrainConfig, say)
    return {"minutes": None} | settings if "rounds" in settings else settings
