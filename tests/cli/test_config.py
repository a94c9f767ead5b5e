"""Settings by flag and by file: what cannot be used ends with one line and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shmzero import Rules, SearchConfig, _core, arena, machine, play_rounds, serve, train
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.plan import resolve
from shmzero.errors import ConfigError
from shmzero.files import file_stamp
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.runs.record_writer import RecordWriter
from shmzero.runs.records import Records
from shmzero.selfplay import main, parse
from shmzero.settings import declarations

HASH = ("--evaluator", "hash", "--preset", "light", "--cards", "2")


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the command ends with."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and re.fullmatch(r"error: [^\n]+\n", printed.err)
    return printed.err


BAD_FLAGS = [
    ("--rounds", "-5", "rounds is -5"),
    ("--rounds", "0", "rounds is 0"),
    ("--rounds", "2.5", "--rounds: '2.5'"),
    ("--rounds", "many", "--rounds: 'many'"),
    ("--rounds", "1" + "0" * 30, "allowed: 1 to"),
    ("--games", "0", "games is 0"),
    ("--players", "2", "players is '2'"),
    ("--players", "9", "players is '9'"),
    ("--players", "5-3", "players is '5-3'"),
    ("--players", "4:0", "players is '4:0'"),
    ("--players", "4:nan", "players is '4:nan'"),
    ("--players", "", "players is ''"),
    ("--cards", "0", "cards is '0'"),
    ("--cards", "14", "cards is '14' with 4 players"),
    ("--trump", "swords", "trump is 'swords'"),
    ("--trump", "spades:-1", "trump is 'spades:-1'"),
    ("--trump", "spades:inf", "trump is 'spades:inf'"),
    ("--dealer", "4", "dealer is '4'"),
    ("--dealer", "-1", "dealer is '-1'"),
    ("--preset", "huge", "preset is 'huge'; allowed: light, medium, heavy"),
    ("--determinizations", "0", "determinizations is 0"),
    ("--simulations", "-1", "simulations is -1"),
    ("--simulations", "100000000", "simulations is 100000000"),
    ("--leaves-in-flight", "0", "leaves_in_flight is 0"),
    ("--opponent-model", "friends", "opponent_model is 'friends'; allowed: policy, maximise"),
    ("--root", "best", "best"),
    ("--targets", "none", "targets is 'none'"),
    ("--random-moves", "1.5", "random_moves is 1.5"),
    ("--noise-alpha", "0", "noise_alpha is 0"),
    ("--temperature", "nan", "temperature is nan"),
    ("--temperature", "inf", "temperature is inf"),
    ("--temperature", "warm", "--temperature: 'warm' is no number"),
    ("--temperature-decisions", "-1", "temperature_decisions is -1"),
    ("--rivalry", "-0.1", "rivalry is -0.1"),
    ("--workers", "0", "workers is 0"),
    ("--workers", "100000", "workers is 100000"),
    ("--lanes", "0", "lanes is 0"),
    ("--slots", "1", "slots is 1"),
    ("--device", "tpu", "device is 'tpu'"),
    ("--device", "cpu*0", "device is 'cpu*0'"),
    ("--device", "cuda:x", "device is 'cuda:x'"),
    ("--inference-threads", "0", "inference_threads is 0"),
    ("--precision", "int4", "int4"),
    ("--max-batch", "0", "max_batch is 0"),
    ("--timeout-ms", "-1", "timeout_ms is -1"),
    ("--spin-us", "-1", "spin_us is -1"),
    ("--evaluator", "oracle", "oracle"),
    ("--net", "giant", "giant"),
    ("--seed", "-1", "seed is -1"),
    ("--seed", str(2**65), f"seed is {2**65}"),
    ("--stall-s", "0", "stall_s is 0"),
    ("--config", "/nowhere.toml", "/nowhere.toml: No such file"),
    ("--rouns", "5", "--rouns, 5; perhaps --rounds"),
    ("--rounds", "--rounds"),
    ("--rounds", "5", "--games", "5", "rounds and games are both set"),
    ("--players", "8", "--cards", "7", "cards is '7' with 8 players"),
    ("--workers", "1", "--device", "cpu*5", "workers is 1 with 4 slots each and 5 inference processes"),
    ("--evaluator", "hash", "--checkpoint", "x.safetensors", "checkpoint is set with evaluator 'hash'"),
    (
        "--simulations",
        "1000000",
        "--determinizations",
        "10000",
        "determinizations x simulations is 10000 x 1000000; allowed: 262144",
    ),
    ("--opponent-model", "maximise", "--simulations", "20000", "20000 for 8 seats each; allowed: 262144"),
    ("--follow", "follow is set without a checkpoint"),
    (
        *HASH,
        "--workers",
        "1",
        "--slots",
        "2",
        "--lanes",
        "1000000",
        "--rounds",
        "1000000",
        "--determinizations",
        "10000",
        "lanes is 1000000",
    ),
]


def test_selfplay_bad_flags_end_with_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for *flags, named in BAD_FLAGS:
        assert named in refusal(capsys, "--out", "deep/run", *flags), flags
        assert contents(tmp_path) == {}, flags


def test_every_command_ends_with_one_line_for_bad_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command, flags, named in (
        (serve.main, ["--slots", "many"], "many"),
        (serve.main, ["--speed", "9"], "--speed"),
        (train.main, ["run", "--rounds", "-5"], "rounds is -5"),
        (train.main, ["run", "--targets", "luck"], "luck"),
        (train.main, ["run", "--preset"], "--preset: expected one argument"),
        (train.main, [], "RUN is missing"),
        (arena.main, ["--deals", "many"], "many"),
        (arena.main, ["--speed", "9"], "--speed"),
    ):
        assert command(flags) == 2, flags
        printed = capsys.readouterr()
        assert printed.out == "" and re.fullmatch(r"error: [^\n]+\n", printed.err) and named in printed.err, printed
        assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "arguments", [["shmzero.train", "--help"], ["shmzero.arena", "random", "threshold", "--deals", "2"]]
)
def test_command_whose_reader_has_left_says_nothing_and_a_full_disk_is_one_line(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", *arguments], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


BAD_TOML = [
    ("rounds = -5", "rounds is -5"),
    ("rounds = 2.5", "rounds is 2.5; allowed: int"),
    ("rounds = true", "rounds is True; allowed: int"),
    ('rounds = "ten"', "rounds is 'ten'; allowed: int"),
    ("slots = 2.5", "slots is 2.5; allowed: int"),
    ('compile = "no"', "compile is 'no'; allowed: bool"),
    ('temperature = "warm"', "temperature is 'warm'; allowed: float"),
    ("temperature = nan", "temperature is nan"),
    ("trump = 5", "trump is 5; allowed: str"),
    ("device = []", "device is []; allowed: str"),
    ("net = []", "net is []; allowed: str"),
    ('net = "giant"', "net is 'giant'; allowed: plan"),
    ('preset = "huge"', "preset is 'huge'; allowed: light"),
    ("players = [3]", "players is [3]"),
    ("out = 5", "out is 5; allowed: Path"),
    ("checkpoint = 5", "checkpoint is 5; allowed: Path"),
    ("rounds = 5\ngames = 5", "rounds and games are both set"),
    ("speed = 9", "unknown setting 'speed'; known: cards,"),
    ("[search]\nsimulations = 5", "unknown setting 'search'"),
    ("rounds = ", "is not TOML"),
    ("rounds = 5\nrounds = 6", "is not TOML"),
    ("\x00", "is not TOML"),
]


def test_selfplay_bad_config_files_end_with_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.toml"
    for text, named in BAD_TOML:
        file.write_text(text)
        assert named in refusal(capsys, "--config", file), text
        assert contents(tmp_path) == {str(file): text.encode()}, text
    file.write_bytes(b"rounds = \xff")
    assert "is not TOML" in refusal(capsys, "--config", file)
    assert "Is a directory" in refusal(capsys, "--config", tmp_path)


def test_settings_that_come_to_the_same_are_the_same_run() -> None:
    default = SelfPlayConfig().identity()
    assert (
        SelfPlayConfig.of(random_moves=0.25, preset="medium", simulations=30, determinizations=3).identity() == default
    )
    assert SelfPlayConfig.of(random_moves=0.2).identity() != default
    alone = SelfPlayConfig.of(simulations=0)
    assert alone.but(random_moves=0.03).identity() == alone.identity()
    assert alone.but(random_moves=0.25).identity()["random_moves"] == 0.25


def test_file_stamp_is_none_where_no_file_can_be_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert file_stamp(None) is file_stamp(file) is file_stamp(file / "below") is None
    file.touch()
    stamp = file_stamp(file)
    (tmp_path / "other").touch()
    (tmp_path / "other").replace(file)
    assert stamp is not None and file_stamp(file) not in (None, stamp)


def test_selfplay_bad_flags_as_a_program(tmp_path: Path) -> None:
    """The same through a shell's eyes: exit code, standard error, no traceback."""
    for flags in (("--rounds", "-5"), ("--preset", "huge"), ("--config", "/nowhere.toml")):
        done = subprocess.run(
            [sys.executable, "-m", "shmzero.selfplay", "--out", "run", *flags],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and done.stdout == "" and re.fullmatch(r"error: [^\n]+\n", done.stderr)
        assert contents(tmp_path) == {}


def test_config_of_a_run_folder_plays_the_same_rounds_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert (
        main(
            [
                *HASH,
                "--rounds",
                "20",
                "--players",
                "3-5",
                "--trump",
                "none,spades:2",
                "--seed",
                "7",
                "--root",
                "halving",
                "--targets",
                "improved",
                "--out",
                str(first),
            ]
        )
        == 0
    )
    file = first / "config.toml"
    assert parse(["--config", str(file)]).output.out == first
    assert parse(["--config", str(file), "--seed", "8"]).seed == 8
    assert main(["--config", str(file), "--out", str(second)]) == 0
    assert list(Records(second)) == list(Records(first)) and len(Records(first)) == 20
    assert (second / "config.toml").read_text() == file.read_text().replace(str(first), str(second))


def test_selfplay_refused_settings_leave_an_existing_run_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*HASH, "--rounds", "5", "--out", str(tmp_path)]) == 0
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    capsys.readouterr()
    assert "seed: 0 there, 1 now" in refusal(capsys, *HASH, "--seed", 1, "--rounds", 9, "--out", tmp_path)
    assert "workers is 1" in refusal(
        capsys, *HASH, "--workers", 1, "--device", "cpu*5", "--rounds", 9, "--out", tmp_path
    )
    assert contents(tmp_path) == before


def test_selfplay_help_explains_every_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        parse(["--help-all"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    options = re.split(r"\n\W{0,3}(?=--[a-z])", shown)[1:]
    texts = {option.split(",")[0].split()[0]: " ".join(option.replace("│", " ").split()) for option in options}
    for name in declarations(SelfPlayConfig):
        text = texts["--" + name.replace("_", "-")]
        help_text = re.sub(r"^(--\S+,? ?)+((\{\w+\}\|)?(N|X|TEXT|PATH|\{[\w,]+\}))?", "", text)
        assert len(re.findall(r"[A-Za-z]{2,}", help_text.rpartition("(default")[0] or help_text)) >= 3, text
    assert "python -m shmzero.selfplay --config run.toml" in shown and "TOML file" in shown


def play_games(players: str, cards: str, rules: Rules) -> list[bytes]:
    search = SearchConfig(simulations=0)
    return play_rounds(HashEvaluator(), 2, search, players=players, cards=cards, games=True, rules=rules)


def test_games_of_more_cards_than_the_deck_are_refused_for_every_number_of_players() -> None:
    """A sequence is checked as it is, whatever the setting `cards` says."""
    for players, sequence in (("8", [17, 17]), ("3-8", [7]), ("3:99,4:1", [1, 14])):
        with pytest.raises(
            ConfigError, match=rf"has {max(sequence)} with \d players; the deck allows at most \d+ cards each"
        ):
            play_games(players, "1", Rules(sequence=sequence))
    rounds = [_core.decode_record(record) for record in play_games("3", "1", Rules(sequence=[17, 1, 17]))]
    assert [one["cards"] for one in rounds] == [17, 1, 17] * 2


def test_games_of_more_rounds_than_ids_are_refused() -> None:
    with pytest.raises(ConfigError, match="a game of these rules has 257 rounds; allowed: 256"):
        play_games("3", "1", Rules(sequence=[1] * 257))
    ids = [_core.decode_record(record)["id"] for record in play_games("3", "1", Rules(sequence=[1] * 256))]
    assert ids == list(range(512))


def test_lanes_leave_room_for_large_searches() -> None:
    large = SelfPlayConfig.of(evaluator="hash", determinizations=1, simulations=200_000, workers=2)
    assert resolve(large).for_units(10**6).lanes * 2 * 200_000 <= 1 << 22
    assert resolve(SelfPlayConfig.of(evaluator="hash", workers=2)).for_units(10**6).lanes >= 300


@pytest.mark.parametrize(
    ("nvidia", "built", "wanted"), [(True, True, "cuda:0"), (True, False, "cpu"), (False, True, "cpu")]
)
def test_device_auto_is_cuda_only_where_torch_can_use_it(
    nvidia: bool, built: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_nvidia", lambda: nvidia)
    monkeypatch.setattr(machine, "torch_has_cuda", lambda: built)
    monkeypatch.setattr(machine, "num_cuda_devices", lambda: 1)
    assert set(resolve(SelfPlayConfig()).devices) == {wanted}
    assert SelfPlayConfig.of(device="cuda").inference.devices() == ["cuda:0"]


def test_device_auto_is_the_cpu_where_the_driver_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_nvidia", lambda: True)
    monkeypatch.setattr(machine, "torch_has_cuda", lambda: True)
    monkeypatch.setattr(machine, "num_cuda_devices", lambda: 0)
    assert set(resolve(SelfPlayConfig()).devices) == {"cpu"}


@pytest.mark.parametrize(
    ("command", "arguments", "flag"),
    [
        (main, ["--evaluator", "hash", "--out", "run"], "--device"),
        (train.main, ["run"], "--device"),
        (train.main, ["run"], "--learner"),
        (arena.main, ["random", "threshold", "--deals", "2"], "--device"),
        (serve.main, ["--model", "nobody:loads"], "--device"),
        (serve.main, [], "--device"),
    ],
)
def test_device_that_the_machine_lacks_is_refused_before_anything_starts(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[[list[str]], int],
    arguments: list[str],
    flag: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "num_cuda_devices", lambda: 1)
    cases = [("cuda", False, "built without CUDA"), ("cuda:7", True, "NVIDIA devices here are 1; allowed: cpu, cuda:0")]
    for value, built, named in [
        *cases,
        ("cpu*0", True, "allowed"),
        ("tpu", True, "allowed"),
        ("cuda:-1", True, "allowed"),
    ]:
        monkeypatch.setattr(machine, "torch_has_cuda", lambda built=built: built)
        assert command([*arguments, flag, value]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and re.fullmatch(r"error: [^\n]+\n", printed.err), printed
        assert f"{flag.strip('-')} is '{value}" in printed.err and named in printed.err
        assert contents(tmp_path) == {}


def test_num_cuda_devices_agrees_with_torch() -> None:
    import torch

    assert machine.num_cuda_devices() == torch.cuda.device_count() or torch.version.cuda is None


def test_torch_has_cuda_agrees_with_torch() -> None:
    import torch

    assert machine.torch_has_cuda() == (torch.version.cuda is not None)


def test_rounds_or_games_as_a_flag_override_the_other_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("rounds = 5\n")
    found = parse(["--config", str(file), "--games", "2"])
    assert (found.length.rounds, found.length.games) == (None, 2)
    file.write_text("games = 5\n")
    found = parse(["--config", str(file), "--rounds=7"])
    assert (found.length.rounds, found.length.games) == (7, None)


def test_run_folder_of_a_fresh_network_takes_no_other_network(tmp_path: Path) -> None:
    RecordWriter(tmp_path, SelfPlayConfig.of(net="small").identity()).close()
    RecordWriter(tmp_path, SelfPlayConfig.of(net="small", workers=1).identity()).close()
    with pytest.raises(ConfigError, match="net: 'small' there, 'plan' now"):
        RecordWriter(tmp_path, SelfPlayConfig.of(net="plan").identity())
    with pytest.raises(ConfigError, match="net: 'small' there, 'of a checkpoint' now"):
        RecordWriter(tmp_path, SelfPlayConfig.of(net="small", checkpoint=tmp_path / "x.safetensors").identity())
