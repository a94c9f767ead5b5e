"""Signals to the commands: what asks to stop, what ends at once, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shmzero.runs.records import Records
from tests.support.processes import children_of, committed, start, wait_for
from tests.support.services import start_server

INTERRUPT = (
    "import os, signal, time\n"
    "from shmzero.cli.interrupts import DOUBLE_S, Interrupt\n"
    "interrupt = Interrupt()\n"
    "def send(name):\n"
    "    signal.raise_signal(getattr(signal, name))\n"
    "    print(name, interrupt.asked, flush=True)\n"
    "def pass_by():\n"
    "    end = time.monotonic() + DOUBLE_S\n"
    "    while time.monotonic() <= end: pass\n"
)


def interrupted(program: str, *wrapper: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*wrapper, sys.executable, "-c", INTERRUPT + program], capture_output=True, text=True)


def test_interrupt_is_asked_by_each_signal_and_two_at_once_are_one_wish() -> None:
    for number in ("SIGINT", "SIGTERM", "SIGHUP"):
        done = interrupted(f"send('{number}'); send('{number}'); print(interrupt.wait(60))")
        assert (done.returncode, done.stdout) == (0, f"{number} True\n" * 2 + "True\n"), done.stderr


def test_interrupt_second_ctrl_c_ends_the_process_and_further_sigterms_do_not() -> None:
    """timeout(1) sends one SIGTERM to the process and one to its group."""
    done = interrupted("send('SIGTERM'); pass_by(); send('SIGTERM'); send('SIGINT'); pass_by(); send('SIGINT')")
    assert done.stdout == "SIGTERM True\nSIGTERM True\nSIGINT True\n"
    assert done.returncode == -signal.SIGINT


def test_interrupt_second_ctrl_c_ends_the_process_where_python_does_not_look() -> None:
    """A number so long that to work it out takes hours, in which Python runs no handler."""
    done = interrupted(
        "if os.fork() == 0:\n"
        "    while os.getppid() == parent: os.kill(parent, signal.SIGINT)\n"
        "    os._exit(0)\n"
        "print(3 ** (1 << 40))"
        .replace("if os", "parent = os.getpid()\nif os", 1)
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")


def test_interrupt_hangup_that_nohup_ignores_stays_ignored() -> None:
    done = interrupted("send('SIGHUP')", "nohup")
    assert (done.returncode, done.stdout) == (0, "SIGHUP False\n"), done.stderr


def test_selfplay_hangup_commits_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("shmzero.selfplay", "--evaluator", "hash", "--rounds", 200_000, "--out", folder, "--json")
    wait_for(lambda: committed(folder) > 0, process)
    family = children_of(process.pid)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate()
    assert process.returncode == 130 and f'"rounds": {len(Records(folder))},' in out, err
    assert family and not any(map(os.path.exists, (f"/proc/{pid}" for pid in family)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_signal_that_comes_twice_removes_its_segment(name: str, number: signal.Signals) -> None:
    server = start_server(name, "--json")
    for _ in range(2):
        server.send_signal(number)
    out, err = server.communicate()
    assert server.returncode == 0 and out.startswith("{"), err
    assert f"shmzero-{name}" not in os.listdir("/dev/shm")


LOADS = {
    "swallows every exception": (
        "    while True:\n"
        "        try:\n"
        "            open('loading', 'w').close()\n"
        "            while True: time.sleep(0.01)\n"
        "        except BaseException: pass\n"
    ),
    "is in C": "    open('loading', 'w').close()\n    return 3 ** (1 << 40)\n",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("load", LOADS)
def test_serve_signal_while_a_model_is_being_made_ends_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, load: str, number: signal.Signals
) -> None:
    (tmp_path / "mine.py").write_text("import time\n\ndef make():\n" + LOADS[load])
    monkeypatch.chdir(tmp_path)
    process = start("shmzero.serve", "--name", name, "--model", "mine:make", path=tmp_path)
    wait_for((tmp_path / "loading").exists, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (-number, "", "")
    assert f"shmzero-{name}" not in os.listdir("/dev/shm")
