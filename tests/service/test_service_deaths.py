"""One server a name; deaths of either side, leftovers, garbage.

SHMZERO_KILLS, SHMZERO_FUZZ and SHMZERO_GARBAGE set how many kills, mangled headers and segments of garbage
(20, 100,000 and 20).
"""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import posix_ipc
import pytest

from shmzero import Client, ConfigError, InferenceServer, ServerGone, _core
from shmzero.errors import SegmentCorrupt
from shmzero.shm.names import sweep_leftovers
from shmzero.shm.segment import create_private
from shmzero.shm.service_segment import find_service
from shmzero.shm.sizes import Widths
from tests.support.service_programs import check, echo, rows
from tests.support.services import ROOT, WIDTHS, start_client, start_server, stopped, until

KILLS = int(os.environ.get("SHMZERO_KILLS", "20"))
FUZZ = int(os.environ.get("SHMZERO_FUZZ", "100000"))
GARBAGE = int(os.environ.get("SHMZERO_GARBAGE", "20"))


# --- one server a name, leftovers ---------------------------------------------------------------------------


def test_server_of_a_living_name_is_refused(server: InferenceServer, client: Client, rng: np.random.Generator) -> None:
    with pytest.raises(ConfigError, match=f"is being served by process {os.getpid()}"):
        InferenceServer(echo, *WIDTHS, name=server.name)
    check(*(asked := rows(rng, 4)), *client.evaluate_many(*asked))


def test_server_closed_tells_its_clients_and_a_new_one_is_found(name: str, rng: np.random.Generator) -> None:
    asked = rows(rng, 4)
    with InferenceServer(echo, *WIDTHS, name=name) as first:
        client = first.client()
        check(*asked, *client.evaluate_many(*asked))
    with pytest.raises(ServerGone, match="has been closed by its server and nobody else serves it"):
        client.evaluate_many(*asked, timeout=0.05)
    with InferenceServer(echo, *WIDTHS, name=name):
        check(*asked, *client.evaluate_many(*asked))
    with InferenceServer(echo, *WIDTHS, name=name, rows_per_slot=2):
        check(*asked, *client.evaluate_many(*asked))
    with (
        InferenceServer(lambda s, m: (s, s), 4, 4, 4, name=name),
        pytest.raises(ServerGone, match="other widths"),
    ):
        client.evaluate_many(*asked)


def test_call_across_a_server_that_leaves_is_answered_by_the_next(name: str, rng: np.random.Generator) -> None:
    """One thread waits for a slot of the first server, one asks when it has left already."""
    asked = rows(rng, 4)
    with ThreadPoolExecutor(2) as pool:
        with InferenceServer(echo, *WIDTHS, name=name, slots=1) as first, first.client().request(1):
            client = first.client()
            waiting = pool.submit(client.evaluate_many, *asked)
            until(lambda: client._link.connection is not None and client._link.connection.is_wanted)
            first.close()
        late = pool.submit(client.evaluate, asked[0][0], asked[1][0])
        with InferenceServer(echo, *WIDTHS, name=name, slots=4):
            check(*asked, *waiting.result())
            check(asked[0][:1], asked[1][:1], *(part[None] for part in late.result()))


def test_version_grows_where_the_next_server_has_other_sizes(name: str, rng: np.random.Generator) -> None:
    server = start_server(name)
    client = Client(name)
    asked = rows(rng, 4)
    check(*asked, *client.evaluate_many(*asked))
    assert client.version == 0
    server.kill()
    server.communicate()
    with InferenceServer(echo, *WIDTHS, name=name, slots=8) as successor:
        check(*asked, *client.evaluate_many(*asked))
        assert client.version == successor.version == 1


def test_server_of_a_program_that_ends_leaves_nothing(name: str) -> None:
    code = (
        "from shmzero import BatchedEvaluator, InferenceServer; from tests.support.service_programs import *\n"
        f"server = InferenceServer(echo, 40, 7, 3, name={name!r}); client = server.client()\n"
        "evaluator = BatchedEvaluator(echo, 40, 7, 3); asked = rows(np.random.default_rng(0), 3)\n"
        "check(*asked, *client.evaluate_many(*asked)); check(*asked, *evaluator.evaluate_many(*asked))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_request_survives_the_death_of_its_server(name: str, rng: np.random.Generator) -> None:
    """Killed with requests waiting; the next server of the name answers them."""
    server = start_server(name)
    client = Client(name)
    asked = rows(rng, 4)
    stopped(server)
    pending = [client.submit_many(*asked) for _ in range(5)]
    server.kill()
    server.communicate()
    with pytest.raises(ServerGone, match="died and was not restarted in time"):
        client.evaluate_many(*asked, timeout=0.0)
    with InferenceServer(echo, *WIDTHS, name=name, slots=32, rows_per_slot=16) as successor:
        for handle in pending:
            check(*asked, *handle.result())
            assert handle.version == successor.version
        assert successor.version > 0


def test_request_is_sent_again_where_the_next_server_has_other_sizes(name: str, rng: np.random.Generator) -> None:
    server = start_server(name)
    client = Client(name)
    asked = rows(rng, 4)
    stopped(server)
    pending = client.submit_many(*asked)
    server.kill()
    server.communicate()
    with InferenceServer(echo, *WIDTHS, name=name, slots=8):
        check(*asked, *pending.result())


def test_dead_clients_blocks_are_freed(name: str) -> None:
    with InferenceServer(echo, *WIDTHS, name=name, slots=8) as server:
        for seed in range(4):
            program = start_client(name, seed)
            until(lambda: server.stats()["clients"] == 1)
            program.kill()
            program.communicate()
            until(lambda: server.stats()["clients"] == 0)
        until(lambda: {s for w in range(8) for s in server._memory.segment.slot_states(w)} == {"free"})


def test_sweep_removes_dead_leftovers_and_nothing_that_lives(name: str) -> None:
    dead = f"/shmzero-unnamed-4194303-{secrets.token_hex(4)}"
    foreign = f"/other-{secrets.token_hex(6)}"
    for path in (dead, foreign):
        os.close(posix_ipc.SharedMemory(path, posix_ipc.O_CREX, mode=0o600, size=4096).fd)
    try:
        with InferenceServer(echo, *WIDTHS, name=name):
            names = os.listdir("/dev/shm")
            assert dead[1:] not in names and foreign[1:] in names
            sweep_leftovers()
            assert f"shmzero-{name}" in os.listdir("/dev/shm")
    finally:
        posix_ipc.unlink_shared_memory(foreign)


@pytest.mark.slow
@pytest.mark.timeout(600 + 5 * KILLS)
def test_kills_of_clients_and_servers_at_random_moments(name: str) -> None:
    """Every answer is its own row's, every call of a living client is answered, nothing is left."""
    choice = random.Random(KILLS)
    server = start_server(name)
    clients = [start_client(name, seed) for seed in range(3)]
    for seed in range(3, KILLS + 3):
        if choice.random() < 0.5:
            place = choice.randrange(3)
            assert clients[place].poll() is None, "a client ended by itself"
            time.sleep(choice.random() * 0.2)
            clients[place].kill()
            clients[place].communicate()
            clients[place] = start_client(name, seed)
        else:
            assert server.poll() is None, "the server ended by itself"
            time.sleep(choice.random() * 0.2)
            server.kill()
            server.communicate()
            server = start_server(name)
    for program in clients:
        out, _ = program.communicate("")
        assert program.returncode == 0 and int(out.split()[-1]) > 0
    found = find_service(name)
    assert found is not None
    segment = found[0]
    until(lambda: segment.owners() == [])
    until(lambda: {s for w in range(segment.num_workers) for s in segment.slot_states(w)} == {"free"})
    server.terminate()
    server.communicate()
    assert server.returncode == 0


# --- what is not a service ----------------------------------------------------------------------------------


def test_attach_mangled_headers_raise_segment_corrupt(rng: np.random.Generator) -> None:
    memory = create_private(1, 2, 1, 4, Widths(*WIDTHS, "float32"))
    whole = os.pread(memory.fd, memory.segment.bytes, 0)
    fd = os.memfd_create("fuzz")
    os.pwrite(fd, whole, 0)
    _core.Segment.attach(fd)
    for case in range(FUZZ):
        os.ftruncate(fd, len(whole))
        head = bytearray(whole[:4096])
        if case % 4 == 0:
            os.ftruncate(fd, int(rng.integers(0, len(whole))))
            os.pwrite(fd, bytes(head)[: os.fstat(fd).st_size], 0)
        elif case % 4 == 1:
            head[8:128] = rng.bytes(120)
            os.pwrite(fd, bytes(head), 0)
        elif case % 4 == 2:
            at = int(rng.choice([0, 8, 12, 16, 24, 40, 48, 56, 60, 64, 68, 72, 76, 80, 84]))
            head[at] ^= int(rng.integers(1, 256))
            os.pwrite(fd, bytes(head), 0)
        else:
            sizes = rng.integers(0, 2**32, 8, dtype=np.uint32) >> rng.integers(0, 32, 8, dtype=np.uint32)
            head[56:88] = sizes.tobytes()
            os.pwrite(fd, bytes(head), 0)
        with pytest.raises(SegmentCorrupt):
            _core.Segment.attach(fd)
    os.close(fd)
    memory.close()


@pytest.mark.slow
def test_server_and_client_survive_garbage_under_their_name(name: str, rng: np.random.Generator) -> None:
    """A sound header and garbage behind it, or no header at all: the client waits or says so, the server serves."""
    asked = rows(rng, 4)
    memory = create_private(1, 4, 1, 8, Widths(*WIDTHS, "float32"))
    header = os.pread(memory.fd, 4096, 0)
    memory.close()
    for case in range(GARBAGE):
        shm = posix_ipc.SharedMemory(f"/shmzero-{name}", posix_ipc.O_CREX, mode=0o600)
        body = np.frombuffer(rng.bytes(memory.segment.bytes - 4096), np.uint64).copy()
        if case % 4 == 1:
            body[rng.random(len(body)) < 0.95] = 0  # some of these are sound enough to be taken over
        os.pwrite(shm.fd, (header if case % 2 else rng.bytes(4096)) + body.tobytes(), 0)
        os.close(shm.fd)
        with pytest.raises(ServerGone, match="nobody serves"):
            Client(name, connect_timeout=0.0)
        with InferenceServer(echo, *WIDTHS, name=name, slots=4, rows_per_slot=8) as server:
            check(*asked, *server.client().evaluate_many(*asked))
