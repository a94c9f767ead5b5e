"""env/run and env/perf.sh: one line for what is missing, settings that can be taken back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHELLS = [
    pytest.param(
        shell, marks=[] if shutil.which(shell) else pytest.mark.skip(reason=f"no {shell}: apt-get install {shell}")
    )
    for shell in ("bash", "zsh")
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that env/run looks at, and nothing made from them."""
    folder = tmp_path / "shmzero"
    for name in ("env", "shmzero/csrc"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("setup.py", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def programs(folder: Path, *names: str, **scripts: str) -> str:
    """A PATH of these programs of the machine and of these scripts alone."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(Path(shutil.which(name) or pytest.fail(f"{name} is missing")).resolve())
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


BASIC = (
    "bash",
    "env",
    "cat",
    "mv",
    "readlink",
    "cksum",
    "tr",
    "dirname",
    "flock",
    "mkdir",
    "rm",
    "grep",
    "tail",
    "sed",
    "head",
)


def env_run(copy: Path, path: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "HOME": str(copy), **more}
    return subprocess.run(
        [str(copy / "env" / "run"), "true"], capture_output=True, text=True, env=environment, timeout=120
    )


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what is wrong; the others say what was being done."""
    assert result.returncode == 1, result.stderr
    doing = ("env/run: making", "env/run: installing", "env/run: building")
    lines = [line for line in result.stderr.splitlines() if not line.startswith(doing)]
    assert len(lines) == 1 and lines[0].startswith("env/run: "), result.stderr
    return lines[0]


def test_run_without_a_command_says_how() -> None:
    result = subprocess.run([str(ROOT / "env" / "run")], capture_output=True, text=True)
    assert result.returncode == 2 and "usage: env/run CMD" in result.stderr


def test_run_passes_the_commands_exit_code_and_words_on() -> None:
    result = subprocess.run([str(ROOT / "env" / "run"), "bash", "-c", 'exit "$1"', "x", "7"])
    assert result.returncode == 7


def test_run_with_only_an_old_python_says_which_is_needed(copy: Path, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", *BASIC, python3="exit 1")  # what it is asked is whether it is new enough
    assert "no Python 3.11 or newer" in complaint(env_run(copy, path))


def test_run_that_can_make_no_environment_removes_only_a_folder_that_it_made(copy: Path, tmp_path: Path) -> None:
    # New enough, and without a venv module: what it is asked begins with -c or with -m.
    path = programs(tmp_path / "bin", *BASIC, python3='[ "$1" = -c ] || { mkdir -p "$3/half"; exit 1; }')
    for kept in ([], ["mine"]):
        for name in kept:
            (copy / ".venv").mkdir()
            (copy / ".venv" / name).write_text("")
        assert "cannot make a virtual environment" in complaint(env_run(copy, path))
        assert (copy / ".venv").exists() == bool(kept)
    assert (copy / ".venv" / "mine").exists()


def test_run_without_a_compiler_says_so(copy: Path, tmp_path: Path) -> None:
    python = f'exec {sys.executable} "$@"'
    path = programs(tmp_path / "bin", *BASIC, python3=python)
    assert "no C++ compiler" in complaint(env_run(copy, path, CXX="c++"))


def test_run_without_python_headers_says_so(copy: Path, tmp_path: Path) -> None:
    site = copy / ".venv" / "bin"
    site.mkdir(parents=True)
    (site / "python").write_text("#!/bin/bash\necho /nowhere/include\n")
    (site / "python").chmod(0o755)
    path = programs(tmp_path / "bin", *BASIC, **{"c++": "exit 0"})
    assert "no Python.h in /nowhere/include" in complaint(env_run(copy, path))


def test_run_with_an_unreachable_registry_says_so(copy: Path, tmp_path: Path) -> None:
    python = f'exec {sys.executable} "$@"'
    path = programs(tmp_path / "bin", *BASIC, python3=python, **{"c++": "exit 0"})
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": "/dev/null"}
    assert "registry cannot be reached" in complaint(env_run(copy, path, **nowhere))


def test_run_with_an_interpreter_that_is_none_says_so(copy: Path, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", *BASIC)
    assert "SHMZERO_PYTHON=/no/python is no program" in complaint(env_run(copy, path, SHMZERO_PYTHON="/no/python"))


def interpreter(folder: Path, torch: int) -> Path:
    """This Python, whose packages are not asked; the check for torch ends with status `torch`."""
    folder.mkdir()
    program = folder / "python"
    program.write_text(
        "#!/bin/bash\n"
        f'case "$*" in *"import torch"*) exit {torch} ;; *"-m pip"*|*setup.py*) exit 0 ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    return program


def test_run_asks_a_second_interpreter_of_the_same_version_for_its_own_torch(copy: Path, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", *BASIC, **{"true": "exit 0", "c++": "exit 0"})
    first, second = interpreter(tmp_path / "first", torch=0), interpreter(tmp_path / "second", torch=1)
    assert env_run(copy, path, SHMZERO_PYTHON=str(first)).returncode == 0
    assert "second/python has no torch >= 2.11" in complaint(env_run(copy, path, SHMZERO_PYTHON=str(second)))
    again = env_run(copy, path, SHMZERO_PYTHON=str(first))
    assert again.returncode == 0 and again.stderr == ""
    assert "is no Python" in complaint(env_run(copy, path, SHMZERO_PYTHON="true"))


def test_run_through_a_link_and_with_cdpath_uses_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(ROOT / "env" / "run")
    (tmp_path / "env").symlink_to(ROOT / "env")
    (tmp_path / "path" / "env").mkdir(parents=True)
    look = 'echo "${PYTHONPATH%%:*} $CDPATH"'
    environment = os.environ | {"CDPATH": str(tmp_path / "path")}
    for program, folder in ((tmp_path / "run", tmp_path), (tmp_path / "env" / "run", tmp_path), ("env/run", ROOT)):
        done = subprocess.run(
            [program, "bash", "-c", look], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == (f"{ROOT.resolve()} {tmp_path / 'path'}\n", "")


def test_run_that_cannot_look_or_write_says_so_and_makes_nothing_anew(copy: Path, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", *BASIC, **{"true": "exit 0", "c++": "exit 0"})
    given = {"SHMZERO_PYTHON": str(interpreter(tmp_path / "first", torch=0))}
    assert env_run(copy, path, **given).returncode == 0
    (site,) = copy.glob(".site-*")
    stamps = {file: (file.read_text(), file.stat().st_ino) for file in (site / ".packages", site / ".build")}
    for status, named in ((1, f"cannot tell whether {site}/.packages is up to date"), (254, "ulimit -u")):
        blind = programs(tmp_path / f"bin-{status}", cat=f"exit {status}")  # 254: what bash says where it cannot fork
        assert named in complaint(env_run(copy, f"{blind}:{path}", **given))
    assert stamps == {file: (file.read_text(), file.stat().st_ino) for file in stamps}
    (copy / "setup.py").write_text("changed")
    limited = ["bash", "-c", 'ulimit -f 0; exec "$0" true', str(copy / "env" / "run")]
    done = subprocess.run(limited, env={"PATH": path, "HOME": str(copy), **given}, capture_output=True, text=True)
    assert done.returncode == 1 and f"{site}/.build cannot be written" in done.stderr.splitlines()[-1]
    assert (site / ".build").read_text() == stamps[site / ".build"][0]


def test_run_builds_again_when_a_source_has_changed_in_whatever_folder(copy: Path, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", *BASIC, **{"true": "exit 0", "c++": "exit 0"})
    given = {"SHMZERO_PYTHON": str(interpreter(tmp_path / "first", torch=0))}
    assert env_run(copy, path, **given).returncode == 0
    for name in ("bind/bind.cpp", "game/rules.h", "game/deeper/new.h"):
        source = copy / "shmzero" / "csrc" / name
        source.parent.mkdir(exist_ok=True)
        source.write_text("// changed")
        assert env_run(copy, path, **given).stderr == "env/run: building the extension\n"
        assert env_run(copy, path, **given).stderr == ""


def test_run_that_meets_a_limit_while_it_installs_names_it(copy: Path, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", *BASIC, **{"true": "exit 0", "c++": "exit 0"})
    for words, named in (
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("OSError: [Errno 27] File too large", "ulimit -f"),
        ("BlockingIOError: [Errno 11] Resource temporarily unavailable", "ulimit -u"),
        ("c++: fatal error: cannot allocate memory", "ulimit -v"),
        ("", "is the disk full?"),
    ):
        (tmp_path / "python").write_text(
            f'#!/bin/bash\ncase "$*" in *setup.py*) echo "{words}" >&2; exit 1 ;; *"import torch"*|*"-m pip"*) exit 0 ;; esac\n'
            f'exec {sys.executable} "$@"\n'
        )
        (tmp_path / "python").chmod(0o755)
        if not words:
            (tmp_path / "python").write_text((tmp_path / "python").read_text().replace('echo "" >&2; ', ""))
        assert named in complaint(env_run(copy, path, SHMZERO_PYTHON=str(tmp_path / "python")))


SETUPTOOLS = "class Anything:\n    def __init__(self, *a, **k): pass\n    def install(self): pass\n\nsetup = Anything\n"
HELPERS = "from setuptools import Anything\n\nParallelCompile = Pybind11Extension = Anything\n"


def wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    """A package of version 1.0 with these files."""
    about = f"{name}-1.0.dist-info"
    files = files | {f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
                     f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}  # fmt: skip
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        for path, text in files.items():
            file.writestr(path, text)
        file.writestr(f"{about}/RECORD", "".join(f"{path},,\n" for path in files))


def test_run_takes_what_an_interpreter_lacks_from_a_folder_of_wheels(copy: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "bare")], check=True)
    site = next((tmp_path / "bare").glob("lib/python*/site-packages"))
    for old in site.glob("setuptools*"):  # which Python 3.11 puts there
        shutil.rmtree(old)
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").write_text("__version__ = '2.11.0'\n")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("numpy", "posix_ipc", "safetensors", "rich", "pytest", "pytest_timeout", "hypothesis"):
        wheel(wheels, name, {f"{name}/__init__.py": ""})
    wheel(wheels, "setuptools", {"setuptools/__init__.py": SETUPTOOLS})
    wheel(wheels, "pybind11", {"pybind11/__init__.py": "", "pybind11/setup_helpers.py": HELPERS})
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
                   "PIP_CONFIG_FILE": "/dev/null", "SHMZERO_PYTHON": str(tmp_path / "bare/bin/python")}  # fmt: skip
    command = [str(copy / "env" / "run"), "python", "-c", "import rich, torch; print(rich.__file__, torch.__file__)"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120,
                            env=environment | {"SHMZERO_WHEELS": str(wheels)})  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert f"{copy}/.site-" in result.stdout and f"{site}/torch" in result.stdout
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert again.returncode == 0 and again.stderr == ""


def test_pip_installs_the_package_without_isolation_or_network(copy: Path, tmp_path: Path) -> None:
    """With a compiler that makes empty files: what is packed, not whether it builds, which env/run shows."""
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(
        ROOT / "shmzero", copy / "shmzero", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/bash\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && touch "$2"; shift; done; exit 0\n')
    compiler.chmod(0o755)
    environment = (
        os.environ | dict.fromkeys(("CC", "CXX", "LDSHARED", "LDCXXSHARED"), str(compiler)) | {"PIP_NO_INDEX": "1"}
    )
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--target",
                    str(tmp_path / "target"), "."], cwd=copy, env=environment, check=True, timeout=120)  # fmt: skip
    target = tmp_path / "target" / "shmzero"
    packed = {path.relative_to(target) for path in target.rglob("*.*")}
    assert {
        path.relative_to(ROOT / "shmzero")
        for path in (ROOT / "shmzero").rglob("*.py*")
        if "__pycache__" not in str(path)
    } <= packed
    assert Path("py.typed") in packed and any(
        path.name.startswith("_core.") and path.suffix == ".so" for path in packed
    )
    assert any((tmp_path / "target").glob("shmzero-*.dist-info/METADATA"))


@pytest.mark.parametrize("shell", SHELLS)
def test_perf_sets_names_them_can_be_sourced_twice_and_undone(shell: str) -> None:
    script = f"""
    before=$(env | sort)
    . {ROOT}/env/perf.sh
    echo "$OMP_NUM_THREADS $MKL_NUM_THREADS"
    once=$(env | sort)
    . {ROOT}/env/perf.sh
    [ "$once" = "$(env | sort)" ] && echo same
    shmzero_perf_undo
    [ "$before" = "$(env | sort)" ] && echo undone
    """
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    result = subprocess.run([shell, "-c", script], capture_output=True, text=True, env=environment)
    assert result.stdout.split("\n")[:3] == ["1 1", "same", "undone"], result


@pytest.mark.parametrize("shell", SHELLS)
def test_perf_leaves_alone_what_is_set(shell: str) -> None:
    script = f". {ROOT}/env/perf.sh; echo $OMP_NUM_THREADS; shmzero_perf_undo; echo $OMP_NUM_THREADS"
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "3"}
    result = subprocess.run([shell, "-c", script], capture_output=True, text=True, env=environment)
    assert result.stdout.split() == ["3", "3"]


@pytest.mark.parametrize("shell", SHELLS)
def test_perf_says_what_it_set_and_only_that(shell: str) -> None:
    script = f". {ROOT}/env/perf.sh; . {ROOT}/env/perf.sh"
    environment = {"PATH": os.environ["PATH"], "MKL_NUM_THREADS": "2", "LD_PRELOAD": ""}
    said = subprocess.run([shell, "-c", script], capture_output=True, text=True, env=environment).stderr.splitlines()
    assert said[0] == "perf.sh set: OMP_NUM_THREADS=1 PYTORCH_ALLOC_CONF=expandable_segments:True"
    assert all("jemalloc: not found" in line for line in said[1:]) and len(said) <= 2
    quiet = environment | {"SHMZERO_PERF_QUIET": "1"}
    assert subprocess.run([shell, "-c", script], capture_output=True, text=True, env=quiet).stderr == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_perf_undo_leaves_what_was_changed_since(shell: str) -> None:
    script = f". {ROOT}/env/perf.sh; export OMP_NUM_THREADS=5; shmzero_perf_undo; echo $OMP_NUM_THREADS ${{MKL_NUM_THREADS-gone}}"
    environment = {"PATH": os.environ["PATH"], "SHMZERO_PERF_QUIET": "1"}
    result = subprocess.run([shell, "-c", script], capture_output=True, text=True, env=environment)
    assert result.stdout.split() == ["5", "gone"], result


@pytest.mark.parametrize("shell", SHELLS)
def test_perf_in_a_strict_shell_without_ldconfig_goes_on(shell: str, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", "sed", ldconfig="exit 127")
    script = f"set -eu -o pipefail; . {ROOT}/env/perf.sh; shmzero_perf_undo; echo there"
    program = shutil.which(shell)
    assert program
    result = subprocess.run([program, "-c", script], capture_output=True, text=True, env={"PATH": path})
    assert result.stdout == "there\n" and result.returncode == 0, result
    assert "jemalloc: not found" in result.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_perf_preloads_a_jemalloc_that_the_loader_knows(shell: str, tmp_path: Path) -> None:
    library = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so.6" in line)
    lines = f"\tlibjemalloc.so.2 (libc6,x86-64) => {library}"
    path = programs(
        tmp_path / "bin", "sed", "env", ldconfig=f"echo 'libs found'; echo '{lines}'; echo '{lines}.not-me'"
    )
    script = f". {ROOT}/env/perf.sh; env; shmzero_perf_undo; echo ${{LD_PRELOAD-gone}}"
    program = shutil.which(shell)
    assert program
    result = subprocess.run([program, "-c", script], capture_output=True, text=True, env={"PATH": path})
    assert f"LD_PRELOAD={library}" in result.stdout.splitlines() and result.stdout.endswith("gone\n"), result
    assert "not found" not in result.stderr
