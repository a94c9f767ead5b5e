"""tools/bench.py: that each benchmark runs, keeps what it says, and refuses what means nothing. No figure is judged."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from shmzero.config import SelfPlayConfig, read_toml
from tools.bench_training import over_runs
from tools.measure import Result

ROOT = Path(__file__).resolve().parent.parent


def bench(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def test_bench_keeps_what_it_prints_as_json_and_csv(tmp_path: Path) -> None:
    out = bench("search", "--quick", "--repeats", 2, "--lanes", 8, "--preset", "light",
                "--json", tmp_path / "x.json", "--csv", tmp_path / "x.csv").stdout  # fmt: skip
    kept = json.loads((tmp_path / "x.json").read_text())
    assert kept["benchmark"] == "search" and kept["settings"]["lanes"] == "8" and kept["machine"]["commit"]
    with (tmp_path / "x.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == [result["name"] for result in kept["results"]]
    assert all(result["name"] in out for result in kept["results"])
    first = kept["results"][0]
    assert first["low"] <= first["value"] <= first["high"]


def test_bench_signature_is_the_same_whoever_plays(tmp_path: Path) -> None:
    one, other = (
        bench("signature", "--workers", workers, "--max-batch", batch).stdout for workers, batch in ((1, 64), (3, 4096))
    )
    assert one == other and len(one.split()[1]) == 64


def test_bench_engines_take_turns_and_short_runs_are_held_against_their_rows(tmp_path: Path) -> None:
    hashed = ("--evaluator", "hash", "--quick", "--repeats", 1)
    bench("scaling", *hashed, "--workers", 1, 3, "--json", tmp_path / "scaling.json")
    names = [result["name"] for result in json.loads((tmp_path / "scaling.json").read_text())["results"]]
    assert names == ["1 workers", "3 workers", "slowest against the best"]
    assert "20 rounds, from the first request" in bench("short", *hashed, "--rounds", 20).stdout


def test_bench_tune_writes_settings_that_selfplay_takes(tmp_path: Path) -> None:
    out = bench("tune", "--evaluator", "hash", "--seconds", 0.3, "--repeats", 1, "--preset", "light",
                "--output", tmp_path / "tuned.toml").stdout  # fmt: skip
    config = SelfPlayConfig(**read_toml(tmp_path / "tuned.toml"))
    chosen = {line.split()[1]: line.split()[2] for line in out.splitlines() if line.startswith("chosen: ")}
    assert config.preset == "light"
    assert {name: str(getattr(config, name)) for name in chosen} == chosen and "lanes" in chosen


def test_bench_training_plays_what_it_trained_without_and_with_search(tmp_path: Path) -> None:
    picture = ["--picture", tmp_path / "training.png"] if importlib.util.find_spec("matplotlib") else []
    bench("training", "--quick", "--minutes", 0.2, "--deals", 6, "--opponents", "threshold", "--search", "1x4",
          "--json", tmp_path / "training.json", *picture)  # fmt: skip
    assert not picture or (tmp_path / "training.png").read_bytes()[:4] == b"\x89PNG"
    results = {r["name"]: r for r in json.loads((tmp_path / "training.json").read_text())["results"]}
    assert results["rounds"]["value"] > 100
    matches = [name for name in results if " against " in name]
    assert len(matches) == 6 and "1x4 against its policy, the others against one" in matches
    assert all(results[name]["low"] < results[name]["value"] < results[name]["high"] for name in matches)
    assert "no checkpoint" in bench("training", "--run", tmp_path, code=2).stderr
    assert "--opponents names 'nobody'" in bench("training", "--opponents", "nobody", code=2).stderr


def test_bench_training_over_runs_has_the_runs_as_its_unit() -> None:
    runs = [[Result("time", 100.0 + x, "s", "<= 120"), Result("won", x, "points/round", "", x - 9, x + 9)] for x in (1.0, 2, 6)]
    longest, won = over_runs(runs)
    assert (longest.value, longest.goal) == (106.0, "<= 120") and "longest of 3" in longest.name
    assert won.value == 3 and won.low is not None and won.high is not None
    error = 7**0.5 / 3**0.5  # standard deviation of 1, 2, 6 over the root of their number
    assert won.high - 3 == pytest.approx(4.3027 * error, rel=1e-3) and 3 - won.low == pytest.approx(won.high - 3)


def test_bench_report_needs_results_and_shows_them(tmp_path: Path) -> None:
    assert "no results in" in bench("report", "--results", tmp_path, code=2).stderr
    bench("search", "--quick", "--repeats", 1, "--lanes", 8, "--json", tmp_path / "search.json")
    bench("report", "--results", tmp_path)
    assert "search medium, 8 lanes" in (tmp_path / "REPORT.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [(("search", "--repeats", "0"), "--repeats is 0"), (("selfplay", "--max-batch", "-1"), "max_batch is -1")],
)
def test_bench_refuses_with_one_line(arguments: tuple[str, ...], line: str) -> None:
    error = bench(*arguments, code=2).stderr
    assert error.startswith("error: ") and line in error and error.count("\n") == 1
