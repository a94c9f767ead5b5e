"""Who is dead: a process that cannot be looked at lives. What a client does whose block was taken away all the same."""

from __future__ import annotations

import faulthandler
import mmap
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from shmzero import Client, InferenceServer, _core
from shmzero.errors import RequestLost
from shmzero.service.reaper import Reaper
from shmzero.shm.segment import create_private
from shmzero.shm.sizes import Widths
from tests.support.service_programs import check, echo, rows
from tests.support.services import ROOT, WIDTHS, Holding, held, started, until

SEES_ALL = "import os, sys, signal; from shmzero import _core\n"


def identity_of(pid: int) -> int:
    """As the process itself would give it."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) << 22 | pid


@contextmanager
def waiting_process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until its input is closed."""
    with subprocess.Popen(command or ("cat",), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, hard))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                used.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for fd in used:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def unshared(code: str, *options: str) -> str:
    """What a Python program prints in namespaces of its own; skips where this user may have none."""
    run = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *options]
    tried = subprocess.run([*run, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no namespaces of its own for this user: {tried.stderr.strip()}")
    done = subprocess.run([*run, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def segment() -> Iterator[_core.Segment]:
    memory = create_private(1, 4, 1, 4, Widths(*WIDTHS, "float32"))
    yield memory.segment
    memory.close()


# --- who is dead ----------------------------------------------------------------------------------------------


def test_life_of_the_living_the_dead_and_their_successors() -> None:
    assert _core.life_of(_core.own_identity()) == "alive"
    assert _core.own_identity() == identity_of(os.getpid())
    with waiting_process() as process:
        identity = identity_of(process.pid)
        assert _core.life_of(identity) == "alive"
        assert _core.life_of(identity + (1 << 22)) == "dead"  # another start: of another with the same pid
        assert _core.life_of(process.pid) == "unknown"  # it could not look at its own start
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert _core.life_of(identity) == "dead"  # a zombie
        process.wait()
        assert _core.life_of(identity) == _core.life_of(process.pid) == "dead"


def test_life_of_a_process_whose_first_thread_has_ended_and_others_have_not() -> None:
    code = (
        "import ctypes, os, sys, threading\n"
        "def last(): sys.stdin.read(); os._exit(0)\n"
        "threading.Thread(target=last).start(); print(flush=True); ctypes.CDLL(None).syscall(60, 0)"
    )
    if os.uname().machine != "x86_64":
        code = code.replace("60", "93")  # exit(2) of one thread
    with waiting_process(sys.executable, "-c", code) as process:
        assert process.stdout is not None and process.stdin is not None and process.stdout.readline()
        identity = identity_of(process.pid)
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        assert _core.life_of(identity) == "alive"
        process.stdin.close()
        until(lambda: _core.life_of(identity) == "dead")


def test_life_of_a_process_that_hidepid_hides_is_unknown() -> None:
    """Of another user, and of the same user where it may not be traced."""
    code = SEES_ALL + (
        "import ctypes, subprocess\n"
        "if subprocess.run(['mount', '-o', 'remount,hidepid=2', '/proc']).returncode: print('no hidepid'); sys.exit()\n"
        "own, (read, write) = _core.own_identity(), os.pipe()\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534)\n"
        "if not (pid := os.fork()):\n"
        "    os.setresuid(65534, 65534, 65534); ctypes.CDLL(None).prctl(4, 0)\n"
        "    os.write(write, str(_core.own_identity()).encode()); signal.pause()\n"
        "other = int(os.read(read, 99))\n"
        "if not (looks := os.fork()):\n"
        "    os.setresuid(65534, 65534, 65534)\n"
        "    print(os.path.exists(f'/proc/{pid}'), _core.life_of(own), _core.life_of(other), flush=True)\n"
        "    os.kill(pid, signal.SIGKILL); os._exit(0)\n"
        "os.waitpid(looks, 0); os.waitpid(pid, 0)\n"
        "print(_core.life_of(other))\n"
    )
    said = unshared(code, "--mount-proc").split("\n")
    if said[0] == "no hidepid":
        pytest.skip("/proc cannot be mounted with hidepid here")
    assert said[:2] == ["False unknown unknown", "dead"]


def test_life_of_a_process_is_unknown_where_proc_shows_another_namespace() -> None:
    """As in `unshare --pid` without --mount-proc."""
    code = SEES_ALL + (
        "read, write = os.pipe()\n"
        "if not (pid := os.fork()): os.write(write, str(_core.own_identity()).encode()); signal.pause()\n"
        "other = int(os.read(read, 99)); print(_core.life_of(other))\n"
        "os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); print(_core.life_of(other))\n"
    )
    assert unshared(code) == "unknown\ndead\n"


@pytest.mark.parametrize("options", [["--mount-proc"], [], ["--mount-proc", "--time", "--boottime", "1000"]])
def test_client_in_another_pid_or_time_namespace_is_refused(server: InferenceServer, options: list[str]) -> None:
    code = (
        "from shmzero import Client, ServerGone\n"
        f"try: Client({server.name!r}, connect_timeout=0)\n"
        "except ServerGone as error: print(error)"
    )
    assert "namespace (another container)" in unshared(code, *options)


# --- the reaper -----------------------------------------------------------------------------------------------


def test_reaper_without_descriptors_frees_the_blocks_of_the_dead_alone(segment: _core.Segment) -> None:
    said: list[str] = []
    reaper = Reaper(segment, said.append)
    with waiting_process() as living, waiting_process() as zombie, waiting_process() as gone:
        ports = [_core.RequestPort.claim(segment, identity_of(p.pid)) for p in (living, zombie, gone)]
        zombie.kill()
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        gone.kill()
        gone.wait()
        with no_descriptors():
            for _ in range(3):
                reaper.look(0)
            owners = segment.owners()
        assert owners == [identity_of(living.pid)]
        assert len(said) == 1 and "ulimit -n" in said[0]
        reaper.look(0)
        assert segment.owners() == owners
        living.kill()
        living.wait()
        until(lambda: (reaper.look(10), segment.owners())[1] == [])  # it is polled, or has a descriptor by now
    reaper.close()
    del ports


def test_reaper_whose_descriptors_somebody_closes_takes_nobody_for_dead(segment: _core.Segment) -> None:
    """As a program does that becomes a daemon."""
    reaper = Reaper(segment, print)
    with waiting_process() as living:
        port = _core.RequestPort.claim(segment, identity_of(living.pid))
        reaper.look(0)
        os.close(reaper._pidfds[identity_of(living.pid)])
        for _ in range(3):
            reaper.look(0)
        assert segment.owners() == [identity_of(living.pid)]
        living.kill()
        living.wait()
        until(lambda: (reaper.look(10), segment.owners())[1] == [])
    reaper.close()
    del port


def test_server_with_fewer_files_than_clients_answers_all_of_them(name: str) -> None:
    """Each client a process; every row is checked, and none of them waits in vain."""
    serve = (
        "import resource, sys; from shmzero import InferenceServer; from tests.support.service_programs import *\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\n"
        f"server = InferenceServer(echo, {WIDTHS[0]}, {WIDTHS[1]}, {WIDTHS[2]}, name={name!r}, slots=64)\n"
        "print('serving', flush=True); sys.stdin.read(); print(server.stats()['refused'], server.error)"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", serve], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    started.append(server)
    assert server.stdout is not None and server.stdout.readline() == "serving\n"
    clients = subprocess.run([sys.executable, "-m", "tests.support.service_programs", "many", name, "26"], cwd=ROOT)
    out, _ = server.communicate("")
    assert clients.returncode == 0 and out == "0 None\n"


# --- a block that was taken away ------------------------------------------------------------------------------


def answer(server: _core.ServerPort) -> None:
    """Serve what is ready, as an echo."""
    states, masks = np.zeros((4, WIDTHS[0]), np.float32), np.zeros((4, 1), np.uint64)
    batch, _ = server.gather(states, masks, 4, timeout_ms=0.0, wait_ms=0.0)
    bools = np.zeros((4, WIDTHS[1]), np.bool_)
    _core.unpack_masks(masks, bools)
    server.scatter(batch, *(np.ascontiguousarray(part, np.float32) for part in echo(states, bools)), version=1)


@pytest.mark.parametrize("moment", ["free", "ready", "taken", "answered", "resting"])
def test_client_taken_for_dead_reads_nobody_elses_answer_and_takes_nobody_elses_block(
    moment: str, rng: np.random.Generator
) -> None:
    memory = create_private(1, 1, 1, 4, Widths(*WIDTHS, "float32"))
    segment, (mine, theirs) = memory.segment, (_core.own_identity(), _core.own_identity() + (1 << 22))
    server = _core.ServerPort(segment, 0, 1)
    asked, others = rows(rng, 3), rows(rng, 3)
    first = _core.RequestPort.claim(segment, mine)
    assert first is not None
    if moment == "resting":
        first.rest()
    elif moment != "free":
        first.submit(*asked)
    if moment == "answered":
        answer(server)
    if moment == "taken":
        batch, _ = server.gather(
            np.zeros((4, WIDTHS[0]), np.float32), np.zeros((4, 1), np.uint64), 4, timeout_ms=0.0, wait_ms=0.0
        )
        segment.reap_client(mine)
        assert _core.RequestPort.claim(segment, theirs) is None  # the server is still at it
        server.scatter(batch, np.ones((4, 7), np.float32), np.ones((4, 3), np.float32), 1)
    else:
        segment.reap_client(mine)
    second = _core.RequestPort.claim(segment, theirs)
    assert second is not None
    if moment == "resting":
        assert not first.resume()
    elif moment == "free":
        with pytest.raises(RequestLost):
            first.submit(*asked)
    second.submit(*others)
    answer(server)
    if moment not in ("resting", "free"):
        for call in (lambda: first.answered, lambda: first.wait(0.0, 0.0), lambda: first.take(3), first.release):
            with pytest.raises(RequestLost, match="taken away: slot 0 of block 0 is answered in generation"):
                call()
        assert not first.cancel()
    first.close()
    assert segment.owners() == [theirs]
    check(*others, *second.take(3)[:2])
    second.close()
    assert segment.owners() == [] and segment.slot_states(0) == ["free"]
    memory.close()


def test_client_taken_for_dead_asks_again(name: str, rng: np.random.Generator) -> None:
    """While its rows are being served, and while they wait; what is left over is free in the end."""
    model = Holding()
    with InferenceServer(model, *WIDTHS, name=name, slots=3, rows_per_slot=4) as server:
        client, other, segment = server.client(), server.client(), server._memory.segment
        kept, asked, late = held(rng, 3), rows(rng, 3), rows(rng, 9)
        pending = [client.submit_many(*kept)]
        model.holds.wait()
        pending.append(client.submit_many(*asked))
        segment.reap_client(_core.own_identity())
        mine = other.submit_many(*late)
        model.let_go.set()
        check(*late, *mine.result())
        check(*kept, *pending[0].result())
        check(*asked, *pending[1].result())
        check(*asked, *client.evaluate_many(*asked))
        until(lambda: {s for w in range(3) for s in segment.slot_states(w)} == {"free"})


def test_slot_request_that_was_taken_away_says_so(
    client: Client, server: InferenceServer, rng: np.random.Generator
) -> None:
    asked = rows(rng, 4)
    segment = server._memory.segment
    with pytest.raises(RequestLost), client.request(4) as r:
        segment.reap_client(_core.own_identity())
        r.run()
    with pytest.raises(RequestLost), client.request(4) as r:  # at the end of the block
        r.states[:], r.masks[:] = asked[0], r.pack_masks(asked[1])
        r.run()
        check(*asked, r.policies, r.values)
        segment.reap_client(_core.own_identity())
    with pytest.raises(KeyError), client.request(4) as r:  # what the block itself raises goes first
        segment.reap_client(_core.own_identity())
        raise KeyError
    check(*asked, *client.evaluate_many(*asked))


# --- a client that stops ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_client_that_ends_while_it_copies_has_published_nothing(
    segment: _core.Segment, rng: np.random.Generator
) -> None:
    """So that nobody waits for one that is stopped there: its slot is free until all rows are in it."""
    states, _ = rows(rng, 4)
    fd = os.memfd_create("masks")
    os.ftruncate(fd, 4096)
    masks = np.frombuffer(mmap.mmap(fd, 4096), np.bool_)[: 4 * WIDTHS[1]].reshape(4, WIDTHS[1])
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        port = _core.RequestPort.claim(segment, _core.own_identity())
        os.ftruncate(fd, 0)
        assert port is not None
        port.submit(states, masks)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGBUS
    assert len(segment.owners()) == 1 and segment.slot_states(0) == ["free"]
    os.close(fd)
