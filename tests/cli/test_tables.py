"""Tables at every width: no number is cut, omitted columns are named, and no line is wider than requested."""

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


def check_complete(columns, rows, shown, width):
    """Every number of the cells was printed, or its column is named as omitted."""
    assert all(len(line) <= width for line in shown.splitlines())
    left_out = re.findall(r"Not shown at this width: (.*?);", " ".join(shown.split()))
    left_out = {title for titles in left_out for title in titles.split(", ")}
    numbers = NUMBER.findall(shown)
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        for number in (number for cell in cells for number in NUMBER.findall(str(cell))):
            assert number in numbers or column.title in left_out, (number, column)
        assert column.rank or column.title not in left_out


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("table", TABLES)
def test_every_number_is_printed_or_its_column_is_named(table, width):
    columns, rows = TABLES[table]
    shown = printed(columns, rows, width)
    check_complete(columns, rows, shown, width)
    assert "…" not in shown


@pytest.fixture(scope="module")
def reports():
    """The report of `info` on the embedded model, and on one with numbers as long as those of a large transformer."""
    pytest.importorskip("diffusers")
    from entropy_attn.cli import info_model

    found = info_model.model_report(info_model.ModelRequest("shapes", device="cpu"))
    large = [
        {
            **row,
            "layer": f"single_transformer_blocks.{at}.attn",
            "kind": "joint",
            "text": "first",
            "seqlen_k": 66048 + at,
        }
        for at, row in enumerate(found["layers"])
    ]
    return [found, {**found, "layers": large}]


@pytest.mark.parametrize("width", [40, 52, 60, 72, 80, 100, 200])
def test_the_layers_of_a_model(width, reports, capsys, monkeypatch):
    from entropy_attn.cli import info_model

    monkeypatch.setenv("COLUMNS", str(width))
    for report in reports:
        info_model.print_model(report)
        table = capsys.readouterr().out.partition("\n\n")[2]
        rows = [["", *row] for _, row in info_model._groups(report["layers"])]
        check_complete(info_model.COLUMNS, rows, table, width)


def test_layer_names_are_not_folded_in_a_file(reports, capsys, monkeypatch):
    from entropy_attn.cli import info_model

    monkeypatch.delenv("COLUMNS", raising=False)
    info_model.print_model(reports[0])
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1 +2" in capsys.readouterr().out


def bench_rows():
    shape = {"model": "sdxl", "size": "2048x2048", "kind": "self", "batch": 2, "heads": 20, "seqlen": 4096}
    shape |= {"seqlen_k": 4096, "head_dim": 64, "dtype": "bfloat16", "task": "plain", "pass": "both", "layers": 60}
    shape |= {"causal": False, "map_keys": None}
    for at, name in enumerate(("auto", "sdpa", "materialised")):
        times = {"p50_ms": 1234.5678 + at, "p20_ms": 1111.1111 + at, "p80_ms": 1333.3333 + at}
        yield {**shape, **times, "implementation": name, "status": "ok", "tflops": 112.34, "peak_mib": 12345.6,
               "max_error": 0.512}  # fmt: skip
    yield {**shape, "implementation": "sage", "status": "out of memory: 12 GiB"}


@pytest.mark.parametrize("width", [40, 52, 60, 72, 80, 100, 200])
def test_the_tables_of_the_bench(width, capsys, monkeypatch):
    from entropy_attn.cli import bench_tables

    monkeypatch.setenv("COLUMNS", str(width))
    rows = list(bench_rows())
    bench_tables.print_bench(rows, {"device": "NVIDIA H100", "torch": "2", "triton": "3", "commit": "a", "date": "b"})
    shown = capsys.readouterr().out
    for columns, lines in (
        (bench_tables.CASES, [line for case in bench_tables._cases(rows)[0].values() for line in case]),
        (bench_tables.CHOICES, bench_tables._choices(rows)),
        (bench_tables.STEPS, bench_tables._steps(rows)),
    ):
        assert lines
        check_complete(columns, lines, shown, width)


@pytest.mark.parametrize("table", TABLES)
def test_nothing_is_folded_or_omitted_without_a_width(table, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    columns, rows = TABLES[table]
    file = io.StringIO()
    print_table(columns, rows, file=file)
    lines = file.getvalue().splitlines()
    assert len(lines) == len(rows) + (2 if columns[-1].group is None else 3)
    assert all(
        " ".join(map(str, row)) in " ".join(line.split()) for row, line in zip(rows, lines[-len(rows) :], strict=True)
    )


def test_one_block_per_policy_before_columns_are_omitted():
    shown = printed(*TABLES["3 policies"], 60)
    assert [line for line in shown.splitlines() if line in POLICIES] == list(POLICIES[:3])
    assert shown.count("size (px)") == 3 and "Not shown" not in shown


def test_the_column_of_the_lowest_rank_is_omitted_first():
    columns = [Column("name"), *(Column(f"rank{rank}", rank=rank, right=True) for rank in (1, 3, 2))]
    shown = printed(columns, [["a", 11111, 33333, 22222]], 20, show_all="--csv has them")
    assert "Not shown at this width: rank3; --csv has them." in " ".join(shown.split())
    assert "33333" not in shown and "22222" in shown and "11111" in shown


def test_one_record_per_row_if_no_column_may_be_omitted():
    columns = [Column("name", fold=True), *(Column(f"n{at}", right=True) for at in range(6))]
    shown = printed(columns, [["one", *(123456.789 + at for at in range(6))]], 30)
    assert "- name: one" in shown and "  n5: 123461.789" in shown


def test_the_width_is_that_of_the_terminal_or_as_requested_and_a_pipe_has_none(monkeypatch):
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
def test_a_number_is_never_folded(number):
    assert number in folded(f"name:key={number}, and more_words.{number}", 1)


def test_markup_in_a_name_is_printed_as_text():
    assert "[bold]a[/bold]" in printed([Column("name")], [["[bold]a[/bold]"]], 40)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected 2 cells"):
        printed([Column("a"), Column("b")], [[1]], 40)
