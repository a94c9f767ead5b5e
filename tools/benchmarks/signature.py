"""Benchmark `signature`: whether the engine still plays the rounds that it played."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

from shmzero.cluster.driver import EngineStarter
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.run import run
from shmzero.runs.records import Records
from tools.benchmarks.measure import Result


def measure(given: argparse.Namespace) -> list[Result]:
    """One hash of the records of fixed runs with the hash evaluator: the same on every machine, and on several."""
    total = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder, EngineStarter(given.cluster) as start:
        for leaves in (1, 4):
            config = SelfPlayConfig.of(
                rounds=100,
                preset="light",
                evaluator="hash",
                leaves_in_flight=leaves,
                workers=given.workers,
                max_batch=given.max_batch,
                cluster=given.cluster,
            )
            path = Path(folder) / str(leaves)
            run(config, path, start=start)
            with Records(path) as records:
                for record in records:
                    total.update(record)
    return [Result("signature", total.hexdigest(), "sha256")]


def add_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--workers", type=int)
    sub.add_argument("--max-batch", type=int)
    sub.add_argument("--cluster", metavar="ADDRESS", help="play on a Ray cluster: local, auto or HOST:PORT of its head")
