"""Tables at every width: no number is cut, what is left out is named, and nothing is wider than asked for."""

from __future__ import annotations

import io
import re

import pytest

pytest.importorskip("rich")

from entropy_attn.cli.tables import Column, folded, output_width, print_table

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
WIDTHS = (*range(40, 101, 3), 120, 160, 200)
POLICIES = ("off", "logn:strength=0.5", "power:p=0.25:clamp=0.8..1.5", "yarn:steps=0..10:layers=up_blocks")


def layers_table():
    columns = [Column("layers", fold=True), Column("kind", fold=True), Column("N", right=True)]
    columns += [Column("T", right=True), Column("scale", right=True), Column("made by", rank=1, fold=True)]
    names = ("transformer_blocks.10.attn1 +18", "single_transformer_blocks.0.attn +37", "norm")
    return columns, [
        [name, "joint, text first", 41760 + at, 4608, f"{0.0887 + at:.5g}", "sdpa, recorded triton"]
        for at, name in enumerate(names)
    ]


def policies_table(policies):
    columns = [Column("size (px)")]
    for title, rank in (("H, nats", 0), ("H / ln N", 0), ("seconds", 2)):
        columns += [Column(title, right=True, group=policy, rank=rank) for policy in policies]
    return columns, [[f"{512 * at}x768", *(f"{at * 111.1 + i:.3f}" for i in range(3 * len(policies)))] for at in (1, 2)]


TABLES = {"layers": layers_table(), **{f"{n} policies": policies_table(POLICIES[:n]) for n in range(1, 5)}}


def printed(columns, rows, width, **options):
    file = io.StringIO()
    print_table(columns, rows, file=file, width=width, **options)
    return file.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("table", TABLES)
def test_every_number_is_whole_or_its_column_is_named(table, width):
    columns, rows = TABLES[table]
    shown = printed(columns, rows, width)
    assert all(len(line) <= width for line in shown.splitlines())
    left_out = re.search(r"Not shown at this width: (.*?);", " ".join(shown.split()))
    left_out = left_out[1].split(", ") if left_out else []
    numbers = NUMBER.findall(shown)
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        for number in (number for cell in cells for number in NUMBER.findall(str(cell))):
            assert number in numbers or column.title in left_out, (number, column)
        assert column.rank or column.title not in left_out
    assert "…" not in shown


@pytest.mark.parametrize("table", TABLES)
def test_nothing_is_folded_or_left_out_where_there_is_no_width(table, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    columns, rows = TABLES[table]
    file = io.StringIO()
    print_table(columns, rows, file=file)
    lines = file.getvalue().splitlines()
    assert len(lines) == len(rows) + (2 if columns[-1].group is None else 3)
    assert all(
        " ".join(map(str, row)) in " ".join(line.split()) for row, line in zip(rows, lines[-len(rows) :], strict=True)
    )


def test_a_block_a_policy_before_anything_is_dropped():
    shown = printed(*TABLES["3 policies"], 60)
    assert [line for line in shown.splitlines() if line in POLICIES] == list(POLICIES[:3])
    assert shown.count("size (px)") == 3 and "Not shown" not in shown


def test_the_lowest_in_rank_goes_first_and_says_how_it_is_seen():
    columns = [Column("name"), *(Column(f"rank{rank}", rank=rank, right=True) for rank in (1, 3, 2))]
    shown = printed(columns, [["a", 11111, 33333, 22222]], 20, show_all="--csv has them")
    assert "Not shown at this width: rank3; --csv has them." in " ".join(shown.split())
    assert "33333" not in shown and "22222" in shown and "11111" in shown


def test_a_row_a_record_where_no_column_may_go():
    columns = [Column("name", fold=True), *(Column(f"n{at}", right=True) for at in range(6))]
    shown = printed(columns, [["one", *(123456.789 + at for at in range(6))]], 30)
    assert "- name: one" in shown and "  n5: 123461.789" in shown


def test_the_width_is_of_the_terminal_or_as_told_and_a_pipe_has_none(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert output_width(io.StringIO()) is None
    monkeypatch.setenv("COLUMNS", "52")
    assert output_width(io.StringIO()) == 52
    monkeypatch.setenv("COLUMNS", "wide")
    assert output_width(io.StringIO()) is None


def test_a_terminal_has_a_width(monkeypatch):
    import os
    import pty

    monkeypatch.delenv("COLUMNS", raising=False)
    here, there = pty.openpty()
    try:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 61, 0, 0))
        with os.fdopen(there, "w") as file:
            assert output_width(file) == 61
    finally:
        os.close(here)


@pytest.mark.parametrize(
    "number", ["0.5", "-1", "1e-05", "0.8..1.5", "2026-11-25", "-3.5e+10", "16x24", "3.14", "--json", "0..10"]
)
def test_a_number_has_no_seam(number):
    assert number in folded(f"name:key={number}, and more_words.{number}", 1)


def test_markup_in_a_name_is_text():
    assert "[bold]a[/bold]" in printed([Column("name")], [["[bold]a[/bold]"]], 40)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells are needed"):
        printed([Column("a"), Column("b")], [[1]], 40)
