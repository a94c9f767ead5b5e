"""What the ring is compared with: right answers, also to two clients by turns; otherwise no comparison is fair."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tools.benchmarks import transport
from tools.benchmarks.other_transports import PACKAGES, installed

ROWS = (1, 7)


@pytest.mark.parametrize("name", ["ring", "queue", "manager", "manager, a message a row", "pipe", "direct", *PACKAGES])
def test_transport_answers_each_client_with_its_own_rows(name: str) -> None:
    if name in PACKAGES and name not in installed():
        pytest.skip(f"an optional package: pip install {name}")
    service = transport.transports("trivial", 2, ROWS)[name]()
    try:
        clients = [service.client(index) for index in range(2)]
        rng = np.random.default_rng(5)
        for number in range(6):
            rows = ROWS[number // 2 % 2]
            states, masks = rng.random((rows, 256), np.float32), rng.random((rows, 52)) < 0.5
            policies, values = clients[number % 2].evaluate_many(states, masks)
            np.testing.assert_array_equal(policies, masks)
            np.testing.assert_array_equal(values, states[:, :1])
        policy, value = clients[0].evaluate(states[0], masks[0])
        np.testing.assert_array_equal(policy, masks[0])
        np.testing.assert_array_equal(value, states[0, :1])
    finally:
        service.close()


def test_benchmark_that_is_killed_leaves_no_service_behind() -> None:
    code = (
        "import time; from tools.benchmarks.transport import _RingService\n"
        "service = _RingService('trivial'); print(service.name, flush=True); time.sleep(3600)"
    )
    root = Path(__file__).parents[2]
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert program.stdout is not None
    name = program.stdout.readline().strip()
    segment = Path("/dev/shm") / f"shmzero-{name}"
    assert name and segment.exists()
    program.kill()
    program.communicate()
    until = time.monotonic() + 60
    while segment.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not segment.exists()
