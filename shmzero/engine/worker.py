"""A worker process: the C++ loop of csrc/play/worker.h and nothing else. It never imports torch."""

from __future__ import annotations

from dataclasses import asdict

from shmzero import _core
from shmzero.engine.messages import WorkerSpec
from shmzero.mcts.play import play_settings
from shmzero.processes.child import child_main
from shmzero.processes.seam import replaceable


def run(spec: WorkerSpec) -> int:
    """Play the units that the parent grants until there are no more."""
    settings = play_settings(spec.search, spec.seed, **asdict(spec.deals), games=spec.games, others=spec.opponent_pool)
    segment = _core.Segment.attach(spec.segment_fd)
    replaceable(_core.run_worker, "SHMZERO_WORKER_LOOP")(
        segment,
        spec.worker,
        spec.grant_fd,
        spec.record_fd,
        spec.lanes,
        settings,
        spec.spin_us,
    )
    return 0


if __name__ == "__main__":
    child_main(WorkerSpec, run)
