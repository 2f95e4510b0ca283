"""The CSV files of the benchmark scripts: a rewritten or extended file keeps its line ends."""

from __future__ import annotations

import pytest

from benchmarks.common import append_rows, read_rows, write_rows

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
