"""The CSV files of the benchmark scripts: a rewritten or extended file keeps its line ends."""

from __future__ import annotations

import pytest

from benchmarks.common import append_rows, read_rows, replace_rows, write_rows

ROWS = [{"case": "a", "ms": 1}, {"case": "b", "ms": 2}]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("write", [write_rows, append_rows])
def test_line_ends_are_kept(tmp_path, write, end):
    path = tmp_path / "rows.csv"
    path.write_bytes(f"case,ms{end}a,1{end}".encode())
    write(path, ROWS[1:] if write is append_rows else ROWS, ["case", "ms"])
    assert path.read_bytes() == f"case,ms{end}a,1{end}b,2{end}".encode()
    assert read_rows(path) == [{name: str(value) for name, value in row.items()} for row in ROWS]


@pytest.mark.parametrize("write", [write_rows, append_rows])
def test_new_files_have_unix_line_ends(tmp_path, write):
    write(tmp_path / "rows.csv", ROWS, ["case", "ms"])
    assert (tmp_path / "rows.csv").read_bytes() == b"case,ms\na,1\nb,2\n"


def test_rows_replace_those_of_the_same_case_and_others_stay(tmp_path):
    path = tmp_path / "rows.csv"
    fields, names = ("case", "size", "ms"), ("case", "size")
    old = [{"case": case, "size": size, "ms": 1} for case in ("b", "a") for size in (1, 1, 2)]
    for _ in range(2):  # again with nothing changed
        replace_rows(path, old, fields, names, order=lambda row: row["case"])
    assert [row["case"] + str(row["size"]) for row in read_rows(path)] == ["a1", "a1", "a2", "b1", "b1", "b2"]
    replace_rows(path, [{"case": "a", "size": 1, "ms": 7}], fields, names, order=lambda row: row["case"])
    found = [(row["case"], row["size"], row["ms"]) for row in read_rows(path)]
    assert sorted(found[:2]) == [("a", "1", "7"), ("a", "2", "1")] and len(found) == 5
