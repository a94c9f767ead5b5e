"""The tables of shmzero/csrc/README.md are those of the code: features, slots, nodes, memory, folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shmzero import _core
from tests.test_layout import FOLDERS

CSRC = Path(__file__).parents[2] / "shmzero" / "csrc"
README = (CSRC / "README.md").read_text()


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(title: str) -> list[list[str]]:
    """Cells of a section's first table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def comment_table(header: str) -> list[list[str]]:
    """Rows of the table in the comment of a header: from, to, who and when, and what its last column has.

    The title of a part of the table is a row of one cell.
    """
    head, *lines = (CSRC / header).read_text().partition("// from ")[2].partition("\n//\n")[0].splitlines()
    last = len("// from ") + [match.start() for match in re.finditer(r"(?<=  )\S", head)][-1]
    rows: list[list[str]] = []
    states = ""
    for line in lines:
        cells = [(match.start(), match[0]) for match in re.finditer(r"\S+( \S+)*", line[3:])]
        texts = [text for _, text in cells]
        if len(texts) == 1 and line.startswith("//   "):
            rows.append([texts[0].rstrip(":")])
        elif len(texts) == 1:
            states = texts[0]  # too many for their column: the rest stands in the next line
        else:
            start, to, *rest = [states, *texts] if states else texts
            has_last = cells[-1][0] + 3 == last
            what = rest[:-1] if has_last else rest
            rows.append([start, to, ": ".join(what), rest[-1] if has_last else ""])
            states = ""
    return rows


def test_folders_are_those_of_the_core_in_their_order() -> None:
    assert [row[0].strip("`/") for row in table("Folders, lowest first")] == list(FOLDERS)


def test_features_begin_where_the_code_says_and_leave_no_gap() -> None:
    code = (CSRC / "game" / "encode.h").read_text()
    begins = re.search(r"inline constexpr int (kHand = 0.*?);", code, re.S)
    assert begins
    known = {name: int(at) for name, at in re.findall(r"(k\w+) = (\d+)", begins[1])}
    rows = table("Features")
    spans = [tuple(int(number) for number in span.split("-")) for span, *_ in rows]
    assert {name.strip("`"): first for (first, _), (_, name, *_) in zip(spans[:-1], rows, strict=False)} == known
    assert [first for first, _ in spans] == [0, *(last + 1 for _, last in spans[:-1])]
    assert spans[-1][1] == _core.NUM_FEATURES - 1 and rows[-1][1] == "`none`"
    assert f"feature version {_core.FEATURE_VERSION}" in section("Features")
    assert known["kIsPlaying"] == _core.PLAYING_FEATURE


@pytest.mark.parametrize(("title", "header"), [("Slots", "shm/slot.h"), ("Nodes", "search/tree.h")])
def test_transitions_are_those_of_the_code(title: str, header: str) -> None:
    said = [[cell for cell in row if cell] for row in table(title)]
    assert said == [[cell for cell in row if cell] for row in comment_table(header)]


def test_slot_table_names_every_state() -> None:
    named = set(re.findall(r"[a-z]+", " ".join(" ".join(row[:2]) for row in table("Slots"))))
    assert set(_core.SLOT_STATES) <= named


@pytest.mark.parametrize("wire", ["float16", "float32"])
@pytest.mark.parametrize("sizes", [(1, 2, 2, 100, 256, 52, 1), (2, 5, 1, 7, 40, 70, 3), (3, 64, 8, 1, 1, 1, 1)])
def test_memory_of_a_segment_is_what_the_table_adds_up_to(sizes: tuple[int, ...], wire: str) -> None:
    servers, workers, slots, rows, state_dim, action_dim, value_dim = sizes
    element = 2 if wire == "float16" else 4
    words = _core.num_mask_words(action_dim)
    names = {
        "servers": servers, "workers": workers, "slots": slots, "rows": rows, "state_dim": state_dim,
        "action_dim": action_dim, "value_dim": value_dim, "element": element, "mask_words": words,
    }  # fmt: skip

    def rounded(number: int, to: int) -> int:
        return -(-number // to) * to

    blocks = slot = 0
    for _, size, many in table("Memory of a segment"):
        product = 1
        for factor in size.split(" x "):
            product *= int(factor) if factor.isdigit() else names[factor]
        if many == "every slot":
            slot += rounded(product, 64)
        else:
            blocks += product * (int(many) if many.isdigit() else names[many])
    total = rounded(blocks, 4096) + workers * slots * rounded(slot, 4096)
    assert total == _core.segment_bytes(*sizes, wire=wire)


def test_example_of_memory_is_what_the_core_says() -> None:
    found = re.search(
        r"(\d+) inference process, (\d+) workers with (\d+) slots of ([\d,]+) rows take ([\d.]+) MB", README
    )
    assert found
    numbers = [int(found[i].replace(",", "")) for i in range(1, 5)]
    assert f"{_core.segment_bytes(*numbers) / 1e6:.1f}" == found[5]
