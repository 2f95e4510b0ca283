"""The tables in the documents are those of the committed CSV files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.common import write_rows
from benchmarks.report import documents, science

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report():
    return documents


def test_documents_agree_with_the_results(report):
    for path in report.SECTIONS:
        assert report.rewritten(path) == path.read_text(), f"{path}: run python -m benchmarks.report"


def test_missing_measurements_are_named(report):
    for table in (report.forward_table, report.backward_table, report.maps_table):
        assert "not yet measured" in table([])
    assert "Not yet measured" in report.shapes_table([])
    assert "Not yet measured" in report.shapes_scale_table([])


def test_the_table_of_scales_by_size(report):
    def rows(policy, setting, values):
        names = ("presence", "correct", "count_error", "found")
        return [
            {"size": "96x96", "policy": policy, "setting": setting, "captions": "300", "measure": name, "mean": mean,
             "difference": change, "difference_low": low, "difference_high": high}
            for name, (mean, change, low, high) in zip(names, values, strict=True)
        ]  # fmt: skip

    off = rows("off", "", [("0.19", "", "", ""), ("0.1", "", "", ""), ("1.111", "", "", ""), ("1.9", "", "", "")])
    changed = [("0.59", "0.4", "0.31", "0.49"), ("0.1", "0.0", "-0.1", "0.1")]
    changed += [("0.611", "-0.5", "-0.69", "-0.31"), ("2.0", "0.1", "0", "0.2")]
    on = rows("chosen", "LogN, strength 4", changed)
    table = report.shapes_scale_table([*off, *on])
    assert "| 96x96 | off | 300 | 0.19 | 0.10 | 1.11 | 1.90 |" in table
    assert "| 96x96 | chosen: LogN, strength 4 | 300 | 0.59 (+0.40 [+0.31, +0.49]) |" in table
    assert "0.61 (-0.50 [-0.69, -0.31])" in table


def test_a_table_of_measurements(report):
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


def test_the_best_of_sdpa_is_of_all_that_ran(report):
    from entropy_attn.bench.implementations.registry import IMPLEMENTATIONS

    exact = {one.name for one in IMPLEMENTATIONS.values() if not one.ours and one.slack == 1 and "plain" in one.tasks}
    assert set(report.perf.SDPA) == exact

    def row(name: str, ms: float, seqlen: int = 4096) -> dict[str, str]:
        about = {"dtype": "bfloat16", "head_dim": "64", "seqlen": str(seqlen), "implementation": name, "tflops": "9.0"}
        return about | {"p50_ms": str(ms), "pass": "forward", "device": "A GPU", "torch": "2", "triton": "3",
                        "date": "2026-01-01", "commit": "abc"}  # fmt: skip

    rows = [row("triton", 2.0), row("sdpa-cudnn", 2.0), row("sdpa-fa4", 1.5), row("flash-attn-4", 1.0)]
    found = {name: value for name, _, value in report.perf.targets(rows, [], [], [])}
    assert found["forward, d 64 and 128, times the speed of the best of SDPA"] == "0.50"
    refused = row("tlx", 1.0) | {"tflops": "", "p50_ms": ""}
    (header,) = (line for line in report.forward_table([*rows, refused]).splitlines() if "head dim" in line)
    assert "| sdpa-efficient | sdpa-fa4 | flash-attn-4 | entropy adds |" in header and "tlx" not in header


def test_a_table_of_maps(report):
    about = {"device": "A GPU", "torch": "2", "triton": "3", "date": "2026-01-01", "commit": "abc", "heads": "8",
             "head_dim": "40", "seqlen": "4096", "pass": "forward"}  # fmt: skip
    rows = [
        about | {"implementation": "triton", "p50_ms": "0.20", "status": "ok"},
        about | {"implementation": "triton+map", "p50_ms": "0.22", "status": "ok"},
        about | {"implementation": "materialised+map", "p50_ms": "", "status": "out of memory"},
        about | {"implementation": "triton+map", "pass": "both", "p50_ms": "0.90", "status": "ok"},
    ]
    assert "| 8 x 40 | 4096 | 0.20 | 0.22 | out of memory | 0.90 | - | +10.0 % |" in report.maps_table(rows)


def test_targets_use_the_worst_row_of_long_sequences(report):
    def row(name: str, seqlen: int, ms: float, head_dim: int = 64) -> dict[str, str]:
        about = {"dtype": "bfloat16", "head_dim": str(head_dim), "seqlen": str(seqlen), "implementation": name}
        return about | {"p50_ms": str(ms), "pass": "forward"}

    forward = [
        *(row("triton", n, ms) for n, ms in ((1024, 9.0), (4096, 2.0), (16384, 2.5))),
        *(row("sdpa-cudnn", n, 2.0) for n in (1024, 4096, 16384)),
        *(row("sdpa-flash", n, 3.0) for n in (1024, 4096, 16384)),
        *(row("triton+entropy", n, ms) for n, ms in ((4096, 2.2), (16384, 2.6))),
        row("materialised+entropy", 16384, 26.0),
        *(row(name, 4096, ms, 80) for name, ms in (("triton", 2.0), ("sdpa-flash", 3.0), ("flash-attn-4", 1.0))),
        row("flash-attn-4", 4096, 2.09),
    ]
    maps = [row("triton", 4096, 1.0), row("triton+map", 4096, 1.1), row("materialised+map", 4096, 6.6)]
    found = {name: value for name, _, value in report.perf.targets(forward, [], maps, [])}
    best = "forward, d 64 and 128, times the speed of the best of SDPA"
    assert found[best] == "0.80, without FlashAttention-4"  # it ran at one length of two
    assert found["forward, d 40, 80 and 160, times the speed of the best but FlashAttention-4"] == "1.50"
    assert found["forward with entropy, d 64 and 128, times the speed of FlashAttention-4 without"] == "0.95"
    assert found["entropy, d 64"] == "1.10"
    assert found["entropy, d 128, times the plain kernel's time"] == "not yet measured"
    assert found["entropy, N = 16,384, times the speed of a materialized softmax"] == "10.00"
    assert found["cross-attention with its map, times the time without"] == "1.10"
    assert found["cross-attention with its map, times the speed of a materialized softmax"] == "6.00"
    assert found["forward and backward, times the speed of the best of SDPA"] == "not yet measured"
    everywhere = [*forward, row("sdpa-fa4", 16384, 2.0)]
    assert {name: value for name, _, value in report.perf.targets(everywhere, [], [], [])}[best] == "0.80"


def test_a_table_of_a_steps_host_time_shows_both_commits(report):
    def row(commit: str, calls: str) -> dict[str, str]:
        return {"step": "LogN", "python_calls": calls, "c_calls": "3", "p20_us": "1", "p50_us": "2", "p80_us": "4",
                "commit": commit}  # fmt: skip

    assert report.perf.step([row("a", "9"), row("b", "7")]) == [["LogN", "9 -> 7", "3 -> 3", "2 -> 2", "1 - 4"]]
    assert report.perf.step([row("b", "7")]) == [["LogN", "7", "3", "2", "1 - 4"]]


def test_a_table_of_guidance(report):
    about = {"torch": "2", "date": "2026-01-01", "commit": "abc", "captions": "150", "pictures": "600", "mean": "0.705"}
    guided = {"alpha": "2.5", "gamma": "", "difference": "0.012", "difference_low": "-0.031", "difference_high": "0.05"}
    rows = [
        about
        | dict.fromkeys(guided, "")
        | (guided if arm != "none" else {})
        | {"arm": arm, "split": split, "metric": m}
        for arm in report.guidance.GUIDANCES
        for split in ("seen", "held-out")
        for m in report.guidance.METRICS
    ]
    what, _, body = report.guidance.marks(rows, "seen")
    assert body[0] == ["no guidance", "-", "-", "70.5", "70.5", "70.5", "70.5"]
    assert body[5] == ["SynGen", "2.5", "-", *["70.5 (+1.2 [-3.1, +5.0])"] * 4]
    assert what == "150 seen captions, 600 images per row, torch 2, 2026-01-01, commit abc"


def test_a_table_of_a_guided_step(report, tmp_path, monkeypatch):
    row = {"device": "a card", "driver": "1", "torch": "2", "diffusers": "0", "date": "2026-01-01", "commit": "abc",
           "size": "512", "layers_per_block": "2", "width_divisor": "1", "dtype": "float16", "ours_ms": "1.0",
           "diffusers_ms": "3.0", "times_faster": "3.00", "times_faster_min": "2.90", "times_faster_max": "3.10",
           "ours_extra_mib": "10", "diffusers_extra_mib": "40", "memory_ratio": "0.25"}  # fmt: skip
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.guided_step().startswith("Not yet measured") and "`make gpu`" in report.guided_step()
    write_rows(tmp_path / "tsam_cost.csv", [row])
    table = report.guided_step()
    assert "| a card | 512² | SD 1.5 | float16 | 1.0 | 3.0 | 3.00 (2.90-3.10) | 10 | 40 | 0.25 |" in table
    assert "not yet measured" not in table
    _, _, body = report.guidance.cost([row | {"width_divisor": "2"}])
    assert body[0][2] == "reduced: 2 layer(s) per block, width / 2"


def test_a_table_of_a_guided_step_of_a_transformer(report):
    row = {
        "device": "a core",
        "torch": "2",
        "diffusers": "0",
        "date": "2026-01-01",
        "layers": "6",
        "heads": "4",
        "image_tokens": "16",
        "text_tokens": "9",
        "weights_in_graph": "True",
        "ours_ms": "1.0",
        "ours_extra_mib": "10",
    }
    for name, factor in (("eager", "3"), ("chosen", "2")):
        row |= {f"{name}_ms": f"{factor}.0", f"{name}_extra_mib": f"{factor}0", f"memory_of_{name}": "0.5"}
        row |= {
            f"times_faster_than_{name}{end}": f"{factor}{of}" for end, of in (("", ".1"), ("_min", ""), ("_max", ".5"))
        }
    _, _, body = report.guidance.joint_cost([row])
    assert body[0][1:] == ["in the graph", "eager", "1.0", "3.0", "3.1 (3-3.5)", "10", "30", "0.5"]
    assert body[1][2:5] == ["eager beside fused, chosen layers", "1.0", "2.0"]


def test_a_missing_marker_is_named(report, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    monkeypatch.setitem(report.SECTIONS, page, {"forward": lambda: ""})
    with pytest.raises(ValueError, match=r"page\.md: no section between <!-- forward:begin -->"):
        report.rewritten(page)


def test_claims_have_their_intervals():
    row = {"layers": "x", "mean": "0.5", "low": "0.25", "high": "0.756"}
    assert science.interval(row) == "0.50 [0.25, 0.76]" and science.interval(row, 0, percent=True) == "50 % [25, 76]"
    assert (
        science.interval({"within": "1", "within_low": "0", "within_high": "2"}, 1, value="within") == "1.0 [0.0, 2.0]"
    )
    assert science.only([row, {**row, "layers": "y"}], layers="y")["mean"] == "0.5"
    for layers, rows in (("z", [row]), ("x", [row, row])):
        with pytest.raises(ValueError, match="expected one with"):
            science.only(rows, layers=layers)


def test_a_layer_or_several_of_a_regime():
    def layer(regime, logn, hold):
        return {"regime": regime, "logn_undone": logn, "hold_undone": hold}

    rows = [layer("responsive", "0.24", "0.987"), layer("one-hot", "0.34", "0.9"), layer("one-hot", "0.3", "0.99")]
    lines = science.newton([*rows, layer("averaging", "0.02", "0.5")])
    assert lines[0][2] == "LogN undoes 24 % of the drift; one Newton step 99 %"
    assert lines[1][2] == "LogN undoes 30 to 34 % of the drift; one Newton step 90 to 99 %"
