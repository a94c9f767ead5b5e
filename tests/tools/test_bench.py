"""tools/bench.py: that each benchmark runs, keeps what it says, and refuses what means nothing. No figure is judged."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shmzero import SearchConfig, _core, play_rounds
from shmzero.cluster.messages import Step
from shmzero.engine.config import SelfPlayConfig, read_toml
from shmzero.engine.plan import resolve
from shmzero.errors import WorkerDied
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NETS
from shmzero.settings import to_toml
from tools import bench as tools_bench
from tools.benchmarks import cluster, report, search, selfplay, tune
from tools.benchmarks.engines import Rates
from tools.benchmarks.machine import machine
from tools.benchmarks.measure import Result, windowed
from tools.benchmarks.options import with_new_names
from tools.benchmarks.training import over_runs

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert code is None or done.returncode == code, done.stderr
    return done


@pytest.mark.parametrize("script", ["bench", "ablate_training", "exact_play", "record_live_view"])
def test_script_without_the_environment_says_how_to_start_it(script: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "tools" / f"{script}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and f"; start it as: env/run python tools/{script}.py" in done.stderr


def test_bench_keeps_what_it_prints_as_json_and_csv(tmp_path: Path) -> None:
    out = bench("search", "--quick", "--repeats", 2, "--lanes", 8, "--preset", "light",
                "--save", tmp_path / "x.json", "--csv", tmp_path / "x.csv").stdout  # fmt: skip
    kept = json.loads((tmp_path / "x.json").read_text())
    assert kept["benchmark"] == "search" and kept["settings"]["lanes"] == "8" and kept["machine"]["commit"]
    with (tmp_path / "x.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == [result["name"] for result in kept["results"]]
    assert all(result["name"] in out for result in kept["results"])
    first = kept["results"][0]
    assert first["low"] <= first["value"] <= first["high"]


def test_bench_json_is_one_object_with_the_command_and_without_where_it_went(tmp_path: Path) -> None:
    asked = ("search", "--quick", "--repeats", 1, "--lanes", 8)
    done = bench(*asked, "--json", "--save", tmp_path / "x.json")
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "x.json").read_text()) and done.stderr == ""
    assert printed["command"] == "tools/bench.py search --quick --repeats 1 --lanes 8"


def test_old_names_of_flags_are_taken_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x"
    given = tools_bench.parser().parse_args(["short", "--games", "7", "--json", str(file)])
    assert (given.rounds, given.save, given.json) == (7, file, False)
    said = ["note: --games is called --rounds now", "note: --json with a file is called --save now"]
    assert capsys.readouterr().err.splitlines() == said
    assert with_new_names(["--games=7", f"--json={file}", "--json"]) == ["--rounds=7", f"--save={file}", "--json"]
    assert capsys.readouterr().err.splitlines() == said
    assert with_new_names(["--json", str(tmp_path), "--json", "--quick"]) == [
        "--json",
        str(tmp_path),
        "--json",
        "--quick",
    ]
    assert capsys.readouterr().err == ""  # what is there already is an agent, not a file to write


def test_bench_signature_is_the_same_whoever_plays(tmp_path: Path) -> None:
    one, other = (
        bench("signature", "--workers", workers, "--max-batch", batch).stdout for workers, batch in ((1, 64), (3, 4096))
    )
    assert one == other and len(one.split()[1]) == 64


@pytest.mark.slow
def test_bench_signature_over_a_cluster_is_that_of_one_machine() -> None:
    pytest.importorskip("ray")
    assert bench("signature", "--cluster", "local").stdout == bench("signature").stdout


@pytest.mark.slow
def test_bench_cluster_measures_the_driver_and_a_real_node(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    short = ("--quick", "--repeats", 1, "--nodes", 1, 2, "--seconds", 0.2, "--node-seconds", 0.2)
    bench("cluster", *short, "--save", tmp_path / "cluster.json")
    found = {row["name"]: row["value"] for row in json.loads((tmp_path / "cluster.json").read_text())["results"]}
    assert all(found[f"{nodes}: the driver takes"] > 0 for nodes in ("1 node", "2 nodes"))
    assert found["under Ray against the fleet: rounds/CPU s"] > 0
    assert sum(name.startswith("profile of 2 nodes: ") for name in found) == cluster.PROFILED
    assert found["profile of 2 nodes: runs/recorder.py:poll"] > 0.5


def test_bench_cluster_answers_with_rounds_of_the_numbers_that_were_granted() -> None:
    records = play_rounds(HashEvaluator(), 2, SearchConfig(determinizations=1, simulations=4))
    engine = cluster.SimulatedEngine(records, network_s=0.0)
    units = [2**40, 2**40 + 1, 5]
    answer = engine.step(Step(engine.greet().engine, {unit: [] for unit in units}, False))
    assert [(part.unit, part.first, part.is_last) for part in answer.parts] == [(unit, 0, True) for unit in units]
    for part, of in zip(answer.parts, (0, 1, 1), strict=True):
        played = _core.decode_record(records[of]) | {"id": part.unit}
        assert repr([_core.decode_record(record) for record in part.records]) == repr([played])


def test_bench_all_leaves_the_cluster_out_where_ray_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else real(name))
    monkeypatch.setattr(tools_bench, "ALL", {"cluster": (1.0, "")})
    monkeypatch.setattr(tools_bench, "measure", lambda given, described: pytest.fail("it was measured"))
    assert tools_bench.main(["all", "--results", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "all.json").read_text())
    assert kept["results"][0]["value"] == "left out"


@pytest.mark.slow
def test_bench_engines_take_turns_and_short_runs_are_held_against_their_rows(tmp_path: Path) -> None:
    hashed = ("--evaluator", "hash", "--repeats", 1)
    bench("scaling", "--quick", *hashed, "--workers", 1, 3, "--save", tmp_path / "scaling.json")
    names = [result["name"] for result in json.loads((tmp_path / "scaling.json").read_text())["results"]]
    assert names == ["1 workers", "3 workers", "slowest against the best"]
    assert "20 rounds, from the first request" in bench("short", *hashed, "--rounds", 20).stdout


@pytest.mark.slow
def test_bench_tune_writes_settings_that_selfplay_takes(tmp_path: Path) -> None:
    out = bench("tune", "--evaluator", "hash", "--seconds", 0.3, "--repeats", 1, "--preset", "light",
                "--output", tmp_path / "tuned.toml").stdout  # fmt: skip
    config = SelfPlayConfig.of(**read_toml(tmp_path / "tuned.toml"))
    chosen = {line.split()[1]: line.split()[2] for line in out.splitlines() if line.startswith("chosen: ")}
    assert config.search.preset == "light"
    assert {name: str(config.flat()[name]) for name in chosen} == chosen and "lanes" in chosen


@pytest.mark.slow
def test_bench_training_plays_what_it_trained_without_and_with_search(tmp_path: Path) -> None:
    picture = ["--picture", tmp_path / "training.png"] if importlib.util.find_spec("matplotlib") else []
    for minutes in (0.2, 0.6, 2):  # whatever a machine needs for a first checkpoint
        done = bench("training", "--quick", "--minutes", minutes, "--deals", 6, "--match-opponents", "threshold", "--search", "1x4",
                     "--save", tmp_path / "training.json", *picture, code=0 if minutes == 2 else None)  # fmt: skip
        if done.returncode == 0:
            break
    assert not picture or (tmp_path / "training.png").read_bytes()[:4] == b"\x89PNG"
    results = {r["name"]: r for r in json.loads((tmp_path / "training.json").read_text())["results"]}
    assert results["rounds"]["value"] > 100
    matches = [name for name in results if " against " in name]
    assert len(matches) == 6 and "1x4 against its policy, the others against one" in matches
    assert all(results[name]["low"] < results[name]["value"] < results[name]["high"] for name in matches)
    run = tmp_path / "run"
    subprocess.run(
        [sys.executable, "-m", "shmzero.train", str(run), "--rounds", "600", "--match-opponents", ""], check=True
    )
    finished = bench("training", "--run", run, "--deals", 2, "--match-opponents", "threshold", "--search", "1x4").stdout
    assert re.search(r"^trained, all sessions .* s$", finished, re.M) and finished.count(" points/round ") == 6
    assert re.search(r"^rounds +600$", finished, re.M)
    assert "no checkpoint" in bench("training", "--run", tmp_path, code=2).stderr
    assert "--match-opponents names 'nobody'" in bench("training", "--match-opponents", "nobody", code=2).stderr


def test_bench_training_over_runs_has_the_runs_as_its_unit() -> None:
    runs = [
        [Result("time", 100.0 + x, "s", "<= 120"), Result("won", x, "points/round", "", x - 9, x + 9)]
        for x in (1.0, 2, 6)
    ]
    longest, won = over_runs(runs)
    assert (longest.value, longest.goal) == (106.0, "<= 120") and "longest of 3" in longest.name
    assert won.value == 3 and won.low is not None and won.high is not None
    error = 7**0.5 / 3**0.5  # standard deviation of 1, 2, 6 over the root of their number
    assert won.high - 3 == pytest.approx(4.3027 * error, rel=1e-3) and 3 - won.low == pytest.approx(won.high - 3)


def test_bench_report_needs_results_and_shows_them(tmp_path: Path) -> None:
    assert "no results in" in bench("report", "--results", tmp_path, code=2).stderr
    bench("search", "--quick", "--repeats", 1, "--lanes", 8, "--save", tmp_path / "search.json")
    bench("report", "--results", tmp_path)
    assert "search medium, 8 lanes" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("search", "--repeats", "0"), "--repeats is 0"),
        (("search", "--repeats", "x"), "invalid int value: 'x'"),
        (("search", "--save", "/no/such/x.json"), "there is no folder /no/such"),
        (("selfplay", "--max-batch", "-1"), "max_batch is -1"),
        (("selfplay", "--device", "cuda:77", "--rounds", "1"), "cuda:77"),
        (("inference", "--device", "cuda:77"), "cuda:77"),
        (("signature", "--repeats", "2"), "--repeats"),
        (("short", "--quick"), "--quick"),
        (("training", "--run", "/tmp", "--minutes", "3"), "--minutes is set with --run"),
        (("training", "--run", "/tmp", "--seeds", "2"), "--seeds is 2"),
    ],
)
def test_bench_refuses_with_one_line(arguments: tuple[str, ...], line: str) -> None:
    error = bench(*arguments, code=2).stderr
    assert error.startswith("error: ") and line in error and error.count("\n") == 1


def test_bench_what_the_system_refuses_is_the_environments_fault(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    error = bench("all", "--results", tmp_path / "runs" / "bench", code=1).stderr
    assert error.startswith("error: ") and error.count("\n") == 1


def test_bench_interrupted_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupted(given: argparse.Namespace) -> list[Any]:
        """As when somebody presses Ctrl-C."""
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "measure", interrupted)
    assert tools_bench.main(["search"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_bench_refuses_a_build_that_is_not_for_speed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(_core, "BUILD", "sanitized")
    assert tools_bench.main(["search"]) == 1
    assert capsys.readouterr().err == "error: this is a sanitized build; its figures mean nothing\n"


@pytest.mark.parametrize(("sanitizer", "build"), [("", "release"), ("thread", "sanitized"), ("undefined", "sanitized")])
def test_setup_names_the_kind_of_a_build(sanitizer: str, build: str, tmp_path: Path) -> None:
    """The compiler only preprocesses: what BUILD would be, without the minute that a build takes."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/bash\n"
        'case "$*" in *bind.cpp*) g++ "${@/#-c/-E}" ;; esac\n'
        'while [ $# -gt 1 ]; do [ "$1" = -o ] && { touch "$2"; }; shift; done\n'
    )
    compiler.chmod(0o755)
    environment = os.environ | {"CC": str(compiler), "CXX": str(compiler), "LDSHARED": str(compiler),
                                "LDCXXSHARED": str(compiler), "SHMZERO_SANITIZE": sanitizer}  # fmt: skip
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--force", "--build-temp", str(tmp_path / "temp"),
                    "--build-lib", str(tmp_path / "lib")], cwd=ROOT, env=environment, check=True, timeout=120)  # fmt: skip
    (text,) = tmp_path.glob("temp/**/bind.o")
    assert f'm.attr("BUILD") = "{build}"' in text.read_text()


@pytest.mark.slow
def test_bench_transport_holds_the_ring_against_the_others(tmp_path: Path) -> None:
    bench("transport", "--quick", "--repeats", 1, "--clients", 2, "--rows", 3, "--seconds", 0.02,
          "--save", tmp_path / "transport.json")  # fmt: skip
    results = {r["name"]: r["value"] for r in json.loads((tmp_path / "transport.json").read_text())["results"]}
    assert {"slot round trip, one row", "rows through slots of 256"} <= set(results)
    for name in ("ring", "queue", "manager", "manager, a message a row", "pipe", "direct"):
        assert results[f"{name}: 1 rows, median"] > 0 and results[f"{name}: 2 clients, 3 rows a time"] > 0
    assert isinstance(results["not installed"], str)


@pytest.mark.slow
def test_bench_inference_and_numerics_serve_every_format(tmp_path: Path) -> None:
    bench("inference", "--quick", "--repeats", 3, "--net", "quick", "--no-compile", "--device", "cpu", "--max-batch", 16,
          "--save", tmp_path / "inference.json")  # fmt: skip
    results = {r["name"]: r["value"] for r in json.loads((tmp_path / "inference.json").read_text())["results"]}
    assert results["eager fp32 1 rows, one thread"] < results["eager fp32 16 rows, one thread"]
    assert results["fp32 1024^3 matrix product, one thread"] > 0
    save_checkpoint(BlobNet(NETS["quick"]), tmp_path / "fresh.safetensors")
    bench("numerics", "--quick", "--no-compile", "--device", "cpu", "--checkpoint", tmp_path / "fresh.safetensors",
          "--save", tmp_path / "numerics.json")  # fmt: skip
    results = {r["name"]: r["value"] for r in json.loads((tmp_path / "numerics.json").read_text())["results"]}
    assert results["fp32 eager: largest difference"] < 1e-5
    for figure in ("largest difference", "p99.9", "mean"):
        assert 0 < results[f"fp16 eager: {figure}"] < 0.01


@pytest.mark.slow
def test_bench_ablate_names_each_measure_and_each_setting_of_the_shell(tmp_path: Path) -> None:
    bench("ablate", "--quick", "--repeats", 1, "--seconds", 0.3, "--evaluator", "hash",
          "--save", tmp_path / "ablate.json")  # fmt: skip
    results = {r["name"]: r["value"] for r in json.loads((tmp_path / "ablate.json").read_text())["results"]}
    assert results["engine"] > 0 and results["one row a batch (no batch submission)"] > 0
    assert "without env/perf.sh's jemalloc" in results and "without env/perf.sh's PYTORCH_ALLOC_CONF" in results


@pytest.mark.slow
def test_bench_selfplay_writes_a_row_for_each_preset(tmp_path: Path) -> None:
    bench("selfplay", "--quick", "--repeats", 1, "--seconds", 0.1, "--evaluator", "hash", "--rounds", 5, "--workers", 3,
          "--device", "cpu", "--output", tmp_path / "x.csv", "--save", tmp_path / "x.json")  # fmt: skip
    with (tmp_path / "x.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["preset"], row["workers"], row["device"]) for row in table] == [
        ("light", "3", "cpu*1"), ("medium", "3", "cpu*1"), ("heavy", "3", "cpu*1")]  # fmt: skip
    assert [round(float(row["simulations_per_decision"])) for row in table] == [40, 90, 250]
    assert [bool(row["speed_up_plan_36.7"]) for row in table] == [False, True, False]
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    assert [r["name"] for r in results if "6,000" in r["goal"]] == ["medium: steady"]


def test_bench_selfplay_is_held_against_what_it_replaces_within_repeats() -> None:
    rates = iter([100.0, 200.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfplay, "Engine", FakeEngine)
        config = SelfPlayConfig.of(evaluator="hash")
        results = selfplay.steady(config, 0.1, 2, {"manager": lambda: next(rates)})
    against = next(result for result in results if result.name == "medium: engine against manager")
    assert (against.low, against.high) == (5.0, 10.0)  # 1,000 / 200 and 1,000 / 100


class FakeEngine:
    """1,000 rows a second, whatever it is asked."""

    def __init__(self, config: SelfPlayConfig) -> None:
        self.fleet = SimpleNamespace(plan=SimpleNamespace(workers=2))

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def warm_up(self, seconds: float) -> FakeEngine:
        return self

    def measure(self, seconds: float) -> Rates:
        return Rates(1000.0, 100.0, 0.5, 0.5, 0.5, 0.25)

    def rows_per_decision(self) -> float:
        return 50.0

    def private_mb(self) -> float:
        return 20.0


def test_windowed_counts_what_ended_in_time_over_the_time_that_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(ends: list[float]) -> float:
        clock = iter([0.0, *ends])
        monkeypatch.setattr("tools.benchmarks.measure.time.perf_counter", lambda: next(clock))
        return windowed(lambda: 10, 1.0)

    assert rate([0.4, 0.8, 1.2]) == 20 / 0.8  # the third ended too late
    assert rate([5.0]) == 10 / 5.0


def test_machine_names_torch_and_the_gpu_without_importing_torch(tmp_path: Path) -> None:
    program = "import json, sys; from tools.benchmarks.machine import machine; m = machine(); print(json.dumps([m, 'torch' in sys.modules]))"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA Test'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    found, imported = json.loads(done.stdout)
    assert found["versions"]["torch"] and not imported
    assert found["gpu"] and found["jemalloc"] in ("preloaded", "installed", "not found")


def test_bench_all_leaves_out_what_would_end_too_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []
    monkeypatch.setattr(tools_bench, "STARTED", time.monotonic() - tools_bench.ALL_S + 30)
    monkeypatch.setattr(tools_bench, "ALL", {"ablate": (40.0, ""), "search": (10.0, "--quick"), "numerics": (5.0, "")})

    def measured(given: argparse.Namespace, described: dict[str, Any]) -> None:
        ran.append(given.name)
        if given.name == "numerics":
            assert given.device == "cpu"
            raise WorkerDied("it died")

    monkeypatch.setattr(tools_bench, "measure", measured)
    assert tools_bench.main(["all", "--device", "cpu", "--results", str(tmp_path)]) == 1
    kept = json.loads((tmp_path / "all.json").read_text())
    lasted = {result["name"]: result["value"] for result in kept["results"]}
    assert ran == ["search", "numerics"] and lasted["ablate"] == "left out" and lasted["from the command on"] > 500


def test_bench_all_fits_into_its_time_and_names_every_benchmark_but_tune() -> None:
    assert sum(seconds for seconds, _ in tools_bench.ALL.values()) <= tools_bench.ALL_S
    assert set(tools_bench.ALL) == set(tools_bench.BENCHMARKS) - {"tune"}
    for name, (_, flags) in tools_bench.ALL.items():
        tools_bench.parser().parse_args([name, *flags.split()])


def test_tune_writes_all_that_it_measured_with(tmp_path: Path) -> None:
    given = tools_bench.parser().parse_args(["tune", "--net", "small", "--checkpoint", "x.safetensors"])
    settings = tune.tuned_settings(given, {"device": "cpu*2", "workers": 4, "lanes": 30})
    (tmp_path / "tuned.toml").write_text(to_toml(settings))
    config = SelfPlayConfig.of(**read_toml(tmp_path / "tuned.toml"))
    plan = resolve(config).for_units(10**6)
    assert (config.net.net, config.inference.device, plan.lanes, plan.workers) == ("small", "cpu*2", 30, 4)
    assert (
        config.inference.inference_threads == plan.threads and config.net.checkpoint == Path("x.safetensors").resolve()
    )


def test_report_without_matplotlib_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = {"unit": "", "goal": "", "low": 0.2, "high": 0.6}
    results = [{**row, "name": "engine", "unit": "evaluations/s", "value": 0.4},
               {**row, "name": "fp32", "value": 0.5}, {**row, "name": "serving alone", "value": 0.25},
               {**row, "name": "jemalloc", "value": "not found", "low": None}]  # fmt: skip
    told = {"benchmark": "ablate", "machine": machine(), "results": results}
    (tmp_path / "ablate.json").write_text(json.dumps(told))
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else real(name))
    said = report.write(tmp_path)
    assert "matplotlib is missing; env/run pip install" in said and "\n" not in said
    text = (tmp_path / "README.md").read_text()
    assert "| fp32 | 2 |" in text and "png" not in text
    monkeypatch.undo()
    if real("matplotlib"):
        assert "missing" not in report.write(tmp_path) and (tmp_path / "ablate.png").stat().st_size > 1000


def test_page_of_the_results_is_what_the_files_beside_it_say() -> None:
    folder = ROOT / "tools" / "results"
    found = {path.stem: report.read(path) for path in sorted(folder.glob("*.json"))}
    assert all(result["command"] in (folder / "README.md").read_text() for result in found.values())
    assert (folder / "README.md").read_text() == report.page(found, {path.stem for path in folder.glob("*.png")}), (
        "run: env/run python tools/bench.py report"
    )


def test_report_of_a_file_that_is_none_of_its_own_says_which(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1")
    assert "x.json is not a file of tools/bench.py" in bench("report", "--results", tmp_path, code=2).stderr
