"""The command `python -m shmzero.serve`."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmzero import Client, _core
from tests.support.service_programs import ACTION_DIM, STATE_DIM, VALUE_DIM, check, echo, make_module, rows
from tests.support.services import ROOT, Holding, held, start_server, unattached, until


def test_serve_stats_follow_and_leaving_on_a_signal(name: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    weights = tmp_path / "w.safetensors"
    module = make_module()
    with torch.no_grad():
        module.value.bias.add_(1.0)
    save_file(module.state_dict(), weights)
    server = start_server(
        name, "--checkpoint", weights, "--follow", "--stats", "--json", "--device", "cpu", model="make_module"
    )
    client = Client(name)
    states, masks = rows(np.random.default_rng(2), 5)
    with torch.no_grad():
        first = module(torch.from_numpy(states), torch.from_numpy(masks))[1].numpy()
        assert np.allclose(client.evaluate_many(states, masks)[1], first, atol=1e-6) and client.version == 0
        module.value.bias.add_(1.0)
        expected = module(torch.from_numpy(states), torch.from_numpy(masks))[1].numpy()
    save_file(module.state_dict(), tmp_path / "new")
    (tmp_path / "new").replace(weights)
    until(lambda: np.allclose(client.evaluate_many(states, masks)[1], expected, atol=1e-6))
    assert client.version == 1
    assert server.stderr is not None
    line = ""
    while "rows/s" not in line:
        line = server.stderr.readline()
    assert "wait p50" in line and "clients" in line
    server.terminate()
    server.terminate()
    out, _ = server.communicate()
    assert server.returncode == 0 and '"version": 1' in out.splitlines()[-1]


def test_serve_stats_fit_a_terminal_of_80_columns(name: str) -> None:
    """Rates, waiting times, clients, weights and batch sizes, none of them cut."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "shmzero.serve", "--name", name, "--model", "tests.support.service_programs:make_echo",
         "--state-dim", str(STATE_DIM), "--action-dim", str(ACTION_DIM), "--value-dim", str(VALUE_DIM), "--stats"],
        cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    client, rng, seen = unattached(name), np.random.default_rng(3), ""
    try:
        while not re.search(r"of rows: \d", seen):
            seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(ours, 65536).decode())
            for n in (1, 2, 4, 8, 16, 32, 64, 100):
                client.evaluate_many(*rows(rng, n))
    finally:
        process.terminate()
        process.wait()
        os.close(ours)
    shown = seen[seen.rindex("rows/s") - 20 :]
    for words in ("rows/s, ", "batches/s", "wait p50 ", "p99 ", "1 clients, weights 0", "batches of rows: "):
        assert words in shown
    assert "…" not in seen and max(map(len, re.split(r"[\r\n]+", seen))) <= 80


def test_serve_follow_goes_on_after_weights_that_were_not_taken_up_in_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import save_file

    from shmzero.service import config as service_config
    from shmzero.service import run as service_run

    model = Holding()

    class Held(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(1))

        def forward(self, states: Any, masks: Any) -> Any:
            policies, values = model(states, masks)
            return policies, values + self.shift

    monkeypatch.setattr(service_run, "load_model", lambda text: Held())
    monkeypatch.setattr(service_run, "SWAP_S", 0.01)
    weights, stop = tmp_path / "w.safetensors", threading.Event()
    save_file({"shift": torch.zeros(1)}, weights)
    config = service_config.ServeConfig.of(
        name=name, model="a:b", state_dim=STATE_DIM, action_dim=ACTION_DIM, value_dim=VALUE_DIM,
        checkpoint=weights, follow=True, device="cpu",
    )  # fmt: skip
    asked, said = held(np.random.default_rng(1), 1), ""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(service_run.run, config, stop)
        try:
            client = Client(name)
            pending = client.submit_many(*asked)
            model.holds.wait()
            save_file({"shift": torch.ones(1)}, tmp_path / "new")
            (tmp_path / "new").replace(weights)
            while said.count("still the old weights, trying again: weights were not taken up") < 2:
                said += capfd.readouterr().err
                assert not running.done(), running.exception()
            monkeypatch.setattr(service_run, "SWAP_S", 10)  # one that has begun is not given up
            model.let_go.set()
            check(*asked, *pending.result())
            until(lambda: np.array_equal(client.evaluate_many(*asked)[1], echo(*asked)[1] + 1))
        finally:
            model.let_go.set()
            stop.set()
        assert running.result()["version"] == 1


def test_serve_without_a_model_serves_blobs_own_network_and_swaps_its_checkpoint(name: str, tmp_path: Path) -> None:
    import torch

    from shmzero.nets.blob_net import BlobNet
    from shmzero.nets.checkpoint import save_checkpoint
    from shmzero.nets.config import NETS
    from shmzero.nets.evaluator import NetEvaluator
    from shmzero.service.config import ServeConfig
    from shmzero.service.run import load_device, make_server

    save_checkpoint(BlobNet(NETS["small"], seed=5), tmp_path / "a.safetensors")
    save_checkpoint(BlobNet(NETS["small"], seed=6), tmp_path / "b.safetensors")
    threads = torch.get_num_threads()
    config = ServeConfig.of(
        name=name, net="small", compile=False, precision="fp32", device="cpu", checkpoint=tmp_path / "a.safetensors"
    )
    deal = _core.Round.deal(players=4, cards=5, trump=1, seed=11)
    with make_server(config, load_device(config.resolved())) as server:
        client = server.client()
        for seed in (5, 6):
            direct = NetEvaluator(BlobNet(NETS["small"], seed=seed))
            expected = direct.evaluate_many(deal.features()[None], deal.mask()[None])
            found = client.evaluate_many(deal.features()[None], deal.mask()[None])
            assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
            server.swap(str(tmp_path / "b.safetensors"))
    torch.set_num_threads(threads)


def test_serve_auto_is_the_cpu_unless_device_and_torch_are_both_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from shmzero import machine
    from shmzero.service.config import ServeConfig
    from shmzero.service.run import blob_device

    asked = ServeConfig.of(name="unused", net="quick", compile=False, precision="fp32")
    monkeypatch.setattr(machine, "has_nvidia", lambda: True)
    monkeypatch.setattr(machine, "torch_has_cuda", lambda: False)
    assert blob_device(asked.resolved()).description.startswith("cpu")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "nonsense"), "module:factory"),
        (("--model", "no_such_module:make"), "cannot be imported"),
        (("--model", "tests.support.service_programs:nothing"), "has no function nothing"),
        (
            ("--model", "tests.support.service_programs:make_echo", "--value-dim", "1", "--action-dim", "5"),
            "operands could not be broadcast",
        ),
        (("--slots", "0"), "slots is 0"),
        (("--model", "tests.support.service_programs:make_echo", "--state-dim", "-3"), "state_dim is -3"),
        (("--model", "tests.support.service_programs:make_echo", "--device", "nonsense"), "device is 'nonsense'"),
        (("--name", "a/b", "--model", "tests.support.service_programs:make_echo"), "service name"),
        (("--follow",), "follow is set without a checkpoint"),
    ],
)
def test_serve_mistakes_are_one_line_and_exit_code_2(arguments: tuple[str, ...], words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "shmzero.serve", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


PRINTS = """
import ctypes, os, subprocess
import numpy as np

def say(where):
    print("python", where)
    os.write(1, f"file 1 {where}\\n".encode())
    ctypes.CDLL(None).puts(f"C {where}".encode())
    subprocess.run(["echo", f"child {where}"])

say("import")

def make():
    say("factory")
    def model(states, masks):
        say("batch")
        return masks * 1.0, states[:, :1]
    return model
"""


def test_serve_standard_output_holds_nothing_that_a_model_prints(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PRINTS)
    process = subprocess.Popen(
        [sys.executable, "-m", "shmzero.serve", "--name", name, "--model", "mine:make", "--json"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )  # fmt: skip
    with Client(name, connect_timeout=60) as client:
        client.evaluate_many(np.zeros((1, _core.NUM_FEATURES)), np.ones((1, _core.NUM_ACTIONS), bool))
    process.terminate()
    out, err = process.communicate()
    assert process.returncode == 0 and out.count("\n") == 1 and json.loads(out)["name"] == name, (out, err)
    for way in ("python", "file 1", "C", "child"):
        for where in ("import", "factory", "batch"):
            assert f"{way} {where}" in err
