"""What the README shows runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_readme_example_runs(number: int, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(EXAMPLES[number])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0 and result.stderr == "", result.stderr


def test_readme_worked_score_is_what_the_rules_say() -> None:
    from tests.cases import round_of

    r = round_of("SA C2 | S5 C9 | H2 CA", "H", 2, "1 0 2 | SA S5 H2 | CA C2 C9")
    assert r.scores() == [0, 10, 12]
