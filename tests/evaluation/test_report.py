"""What is written for readers."""

from __future__ import annotations

import pandas as pd

from entropy_attn.evaluation.report import markdown_table, shown, write_csv, write_page
from entropy_attn.evaluation.statistics import Interval


def test_markdown_table():
    rows = [{"policy": "a|b", "KID": 0.123456}, {"policy": "off", "KID": None}]
    assert markdown_table(rows) == "| policy | KID |\n|---|---:|\n| a\\|b | 0.1235 |\n| off |  |"


def test_shown():
    assert shown(Interval(0.5, 0.25, 0.75), 2) == "0.50 (0.25 to 0.75)"
    assert shown(Interval(-0.01, -0.02, 0.01), 1, signed=True, factor=100) == "-1.0 (-2.0 to +1.0)"
    nan = float("nan")
    assert shown(None) is None and shown(Interval(nan, nan, nan)) is None and shown(Interval(1.0, nan, nan)) == "1.000"


def test_files(tmp_path):
    path = write_csv([{"size": "64x64", "value": 0.123456789, "n": 3}], tmp_path / "a.csv")
    assert path.read_text() == "size,value,n\n64x64,0.123457,3\n" and [p.name for p in tmp_path.iterdir()] == ["a.csv"]
    assert pd.read_csv(path)["value"][0] == 0.123457
    assert write_page(tmp_path / "b.md", "T", ["x", "", "y"]).read_text() == "# T\n\nx\n\ny\n"
