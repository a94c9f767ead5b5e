#!/usr/bin/env python3
"""Records the live view of a command: python tools/record_live_view.py --out docs/live-view.svg.

Types the command into a terminal of tmux, notes twice a second what is drawn there until the prompt is back, and
writes some of these moments as one SVG, which shows them one after the other. Where nothing moves, it shows the last.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

try:
    from shmzero.cli.command import run_command
    from shmzero.cli.flags import Parser
    from shmzero.errors import ConfigError
except ImportError as error:
    sys.exit(f"error: {error}; start it as: env/run python tools/record_live_view.py")

COMMAND = "env/run python -m shmzero.train runs/smoke"
COLUMNS, LINES = 100, 20
LOOK_S = 0.5
MOMENTS_S = (0, 2, 4, 6, 9, 12, 16, 20, 25, 30, 36, 42, 50, 58, 66, 75, 85, 95, 105, 115, 119)
"""Seconds after the start that are shown, and the end as well."""
SHOWN_S, END_SHOWN_S = 1.0, 6.0
"""For how long a moment is shown, and the end."""
PROMPT = "$ "
CELL, LINE, LEFT, TOP = 8.4, 19, 18, 30
"""A column's width and a line's height in the picture, and where the first letter stands."""
STYLE = """    .screen { fill: #12161c; stroke: #3a424d } text { fill: #d6dde6; white-space: pre }
    .bold { font-weight: 700; fill: #ffffff } .bar { fill: #f92672 } .rest { fill: #4a515b }"""
COLOURS = {"38;5;237": "rest"}
"""Classes of rich's colours; all others are that of a bar."""

Line = list[tuple[int, str, str]]
"""Pieces of a line: the column where each begins, its class, its text."""


@dataclass(frozen=True)
class Frame:
    """What the terminal showed, `seconds` after the command was typed."""

    seconds: float
    lines: list[Line]


def pieces(line: str) -> Line:
    """A line with escapes, as tmux gives it, in pieces."""
    column, colour, bold, found = 0, "", "", []
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        code = re.fullmatch(r"\x1b\[([0-9;]*)m", part)
        if code is None:
            if part.strip():
                start = column + len(part) - len(part.lstrip())
                found.append((start, colour or bold, part.strip()))
            column += len(part)
        elif code[1] in ("", "0"):
            colour = bold = ""
        elif code[1] == "1":
            bold = "bold"
        elif code[1].startswith("38;5;"):
            colour = COLOURS.get(code[1], "bar")
        elif code[1] == "39":
            colour = ""
    return found


def record(command: str, limit_s: float) -> list[Frame]:
    """Run the command in a terminal of its own; what that showed, until the prompt was back or the time over."""
    name = f"shmzero-{os.getpid()}"

    def tmux(*words: str) -> str:
        return subprocess.run(["tmux", "-L", name, *words], check=True, capture_output=True, text=True).stdout

    shell = f"env PS1='{PROMPT}' bash --norc --noprofile"
    tmux("new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), shell)
    try:
        time.sleep(1)  # for the prompt
        tmux("send-keys", command, "Enter")
        began, frames = time.monotonic(), []
        while time.monotonic() - began < limit_s:
            time.sleep(LOOK_S)
            text = tmux("capture-pane", "-p", "-e").rstrip()
            frames.append(Frame(time.monotonic() - began, [pieces(line) for line in text.split("\n")]))
            if text.endswith("\n" + PROMPT.strip()):  # the prompt that comes after the end is not shown
                return [*frames[:-1], Frame(frames[-1].seconds, frames[-1].lines[:-1])]
        raise ConfigError(f"{command!r} has not ended within {limit_s:g} s; allowed: a command that does")
    finally:
        tmux("kill-server")


def chosen(frames: list[Frame]) -> list[Frame]:
    """The frames nearest to MOMENTS_S, each once, and the last."""
    nearest = [min(frames, key=lambda frame: abs(frame.seconds - moment)) for moment in MOMENTS_S]
    return list({id(frame): frame for frame in [*nearest, frames[-1]]}.values())


def picture(frames: list[Frame], title: str) -> str:
    """The frames as one SVG."""
    total_s = (len(frames) - 1) * SHOWN_S + END_SHOWN_S
    width = round(2 * LEFT + CELL * max(start + len(t) for f in frames for line in f.lines for start, _, t in line))
    height = round(TOP + LINE * max(len(frame.lines) for frame in frames))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="title"',
        "     font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace\""
        ' font-size="14">',
        f'  <title id="title">{html.escape(title)}</title>',
        "  <style>",
        STYLE,
        f"    .f {{ visibility: hidden; animation: moment {total_s:g}s step-end infinite }}",
        "    .end { visibility: visible; animation-name: end }",
        *(
            f"    @keyframes {name} {{ 0% {{ visibility: visible }} "
            f"{100 * shown_s / total_s:.3f}%, 100% {{ visibility: hidden }} }}"
            for name, shown_s in (("moment", SHOWN_S), ("end", END_SHOWN_S))
        ),
        "    @media (prefers-reduced-motion: reduce) { .f { animation: none } }",
        "  </style>",
        f'  <rect class="screen" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="8"/>',
    ]
    for place, frame in enumerate(frames):
        kind = "f end" if place == len(frames) - 1 else "f"
        delay_s = (
            place * SHOWN_S - total_s if place else 0
        )  # negative: each is at its place of the circle from the start
        out.append(f'  <g class="{kind}" style="animation-delay: {delay_s:g}s">')
        for row, line in enumerate(frame.lines):
            spans = [
                f'<tspan x="{LEFT + start * CELL:g}" textLength="{len(text) * CELL:g}"'
                + (f' class="{name}"' if name else "")
                + f">{html.escape(text, quote=False)}</tspan>"
                for start, name, text in line
            ]
            if spans:
                out.append(f'    <text y="{TOP + row * LINE}">{"".join(spans)}</text>')
        out.append("  </g>")
    return "\n".join([*out, "</svg>", ""])


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = Parser(
        prog="tools/record_live_view.py",
        description="Records a command in a terminal of tmux and writes an animated SVG.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the SVG to write")
    parser.add_argument("--command", default=COMMAND, help="what is typed; its run folder should be a new one")
    parser.add_argument("--limit-s", type=float, default=300.0, help="seconds that it may take at most")
    given = parser.parse_args(arguments)
    try:
        frames = chosen(record(given.command, given.limit_s))
    except FileNotFoundError:
        raise ConfigError("tmux is not there; install it (Debian: apt-get install tmux)") from None
    given.out.write_text(picture(frames, f"The terminal during: {given.command}. Some moments, one after the other."))
    print(f"{given.out}: {len(frames)} moments of {frames[-1].seconds:.0f} s, {given.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
