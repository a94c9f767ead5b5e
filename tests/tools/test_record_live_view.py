"""tools/record_live_view.py: lines of a terminal become the picture that shows them."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tools import record_live_view
from tools.record_live_view import Frame, chosen, picture, pieces


def test_line_with_escapes_keeps_its_columns_and_colours() -> None:
    line = "\x1b[38;5;197m━━\x1b[38;5;237m╺━\x1b[39m 50%"
    assert pieces(line) == [(0, "bar", "━━"), (2, "rest", "╺━"), (5, "", "50%")]
    assert pieces("\x1b[1mlearner    \x1b[0m\x1b[39m\x1b[49mstep 3") == [(0, "bold", "learner"), (11, "", "step 3")]
    assert pieces("   ") == []


def test_picture_holds_the_lines_of_each_moment_and_the_end_once() -> None:
    frames = [Frame(0.5 * i, [pieces(f"$ a < {i}")]) for i in range(20)]
    shown = chosen(frames)
    assert shown[-1] is frames[-1] and len(shown) == len({frame.seconds for frame in shown}) < len(frames)
    tree = ET.fromstring(picture(shown, "a < b"))
    groups = [group for group in tree if group.tag.endswith("g")]
    assert len(groups) == len(shown)
    assert ["".join(group.itertext()).strip() for group in groups] == [f"$ a < {2 * f.seconds:.0f}" for f in shown]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux to draw in")
def test_command_is_recorded_to_its_end(tmp_path: Path) -> None:
    out = tmp_path / "view.svg"
    assert record_live_view.main(["--out", str(out), "--command", "echo first; sleep 1; echo last"]) == 0
    ends = [group for group in ET.parse(out).getroot() if group.get("class") == "f end"]
    assert ["".join(text.itertext()) for text in ends[0]] == ["$ echo first; sleep 1; echo last", "first", "last"]
