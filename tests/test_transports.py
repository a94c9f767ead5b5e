"""What the ring is compared with: right answers, also to two clients by turns; otherwise no comparison is fair."""

from __future__ import annotations

import numpy as np
import pytest

from tools import bench_transport
from tools.other_transports import PACKAGES, installed

ROWS = (1, 7)


@pytest.mark.parametrize("name", ["ring", "queue", "manager", "manager, a message a row", "pipe", "direct", *PACKAGES])
def test_transport_answers_each_client_with_its_own_rows(name: str) -> None:
    if name in PACKAGES and name not in installed():
        pytest.skip(f"an optional package: pip install {name}")
    service = bench_transport.transports("trivial", 2, ROWS)[name]()
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
