"""The tables in the documents are those of the committed CSV files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documents_agree_with_the_results(report):
    for path in report.SECTIONS:
        assert report.rewritten(path) == path.read_text(), f"{path}: run python benchmarks/report.py"


def test_what_was_not_measured_is_said(report):
    for table in (report.forward_table, report.backward_table, report.maps_table):
        assert "not yet measured" in table([])
    assert "Not yet measured" in report.shapes_table([])
    assert "Not yet measured" in report.tsam_table([], "seen")
    assert "Not yet measured" in report.premise_table([])
    assert "not yet measured" in report.tsam_cost_table([])


def test_a_measured_table(report):
    about = {"device": "A GPU", "torch": "2", "triton": "3", "date": "2026-01-01", "commit": "abc", "dtype": "bfloat16",
             "head_dim": "64", "seqlen": "1024"}  # fmt: skip
    rows = [
        about | {"implementation": "triton", "tflops": "100.0", "p50_ms": "2.0"},
        about | {"implementation": "triton+entropy", "tflops": "95.2", "p50_ms": "2.1"},
        about | {"implementation": "sdpa-cudnn", "tflops": "", "p50_ms": ""},
    ]
    table = report.forward_table(rows)
    assert "| bfloat16 | 64 | 1024 | 100.0 | 95.2 | - | - | - | +5.0 % |" in table
    assert "A GPU, torch 2, Triton 3, 2026-01-01, commit abc" in table


def test_a_measured_table_of_maps(report):
    about = {"device": "A GPU", "torch": "2", "triton": "3", "date": "2026-01-01", "commit": "abc", "heads": "8",
             "head_dim": "40", "seqlen": "4096", "pass": "forward"}  # fmt: skip
    rows = [
        about | {"implementation": "triton", "p50_ms": "0.20", "status": "ok"},
        about | {"implementation": "triton+map", "p50_ms": "0.22", "status": "ok"},
        about | {"implementation": "materialised+map", "p50_ms": "", "status": "out of memory"},
        about | {"implementation": "triton+map", "pass": "both", "p50_ms": "0.90", "status": "ok"},
    ]
    assert "| 8 x 40 | 4096 | 0.20 | 0.22 | out of memory | 0.90 | - | +10.0 % |" in report.maps_table(rows)


def test_a_table_of_guidance(report):
    about = {"torch": "2", "date": "2026-01-01", "commit": "abc", "captions": "150", "pictures": "600", "mean": "0.705"}
    rows = [
        about | {"arm": arm, "split": split, "metric": metric, "alpha": "" if arm == "none" else "2.5", "gamma": ""}
        | dict(zip(("difference", "difference_low", "difference_high"),
                   ("", "", "") if arm == "none" else ("0.012", "-0.031", "0.05"), strict=True))
        for arm in report.GUIDANCES for split in ("seen", "held-out")
        for metric in ("presence", "binding", "count", "relation")
    ]  # fmt: skip
    table = report.tsam_table(rows, "seen")
    assert "| no guidance | - | - | 70.5 | 70.5 | 70.5 | 70.5 |" in table
    assert "| SynGen | 2.5 | - | 70.5 (+1.2 [-3.1, +5.0]) |" in table
    assert "150 seen captions, 600 pictures a row, torch 2, 2026-01-01, commit abc" in table


def test_a_table_of_the_cost(report):
    row = {"device": "a card", "driver": "1", "torch": "2", "diffusers": "0", "date": "2026-01-01", "commit": "abc",
           "size": "512", "layers_per_block": "2", "width_divisor": "1", "dtype": "float16", "ours_ms": "1.0",
           "diffusers_ms": "3.0", "times_faster": "3.00", "times_faster_min": "2.90", "times_faster_max": "3.10",
           "ours_extra_mib": "10", "diffusers_extra_mib": "40", "memory_ratio": "0.25"}  # fmt: skip
    table = report.tsam_cost_table([row])
    assert "| a card | 512² | SD 1.5 | float16 | 1.0 | 3.0 | 3.00 (2.90-3.10) | 10 | 40 | 0.25 |" in table
    assert "not yet measured" not in table
    reduced = report.tsam_cost_table([row | {"driver": "", "width_divisor": "2"}])
    assert "reduced: 2 layer(s) a block, width / 2" in reduced and "not yet measured" in reduced


def test_a_missing_marker_is_named(report, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    monkeypatch.setitem(report.SECTIONS, page, {"forward": lambda: ""})
    with pytest.raises(ValueError, match=r"page\.md: no section between <!-- forward:begin -->"):
        report.rewritten(page)
