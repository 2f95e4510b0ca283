"""The table of machine code in docs/performance.md."""

from __future__ import annotations

import pytest

from benchmarks.common import RESULTS, read_rows
from benchmarks.report import machine_code

ROW = {
    "kernel": "ours", "head_dim": "64", "schedule": "plain", "entropy": "off", "block_m": "128", "block_n": "64",
    "warps": "8", "loop_registers": "150", "shared_bytes": "81952", "spills": "0", "products": "12",
    "exp_in_flight": "0.17", "instructions": "7.19", "fma": "2.62", "memory": "0.03", "other": "3.31",
    "tensor_clk": "0.0625", "issue_clk": "0.0562",
}  # fmt: skip
ON = {**ROW, "entropy": "on", "loop_registers": "160", "spills": "3", "instructions": "8.38", "exp_in_flight": "0.9"}


def cells(line: list[str]) -> dict[str, str]:
    return dict(zip(machine_code.HEADER, line, strict=True))


def test_a_line_has_the_kernel_without_and_with_entropy():
    first, *others = (cells(line) for line in machine_code.table([ROW, ON]))
    assert first["kernel"] == "ours, plain" and first["tile"] == "128 x 64" and first["shared KiB"] == "80"
    assert first["registers"] == "150 / 160" and first["spills"] == "0 / 3"
    assert first["instructions"] == "7.19 / 8.38" and first["exp in flight, %"] == "17 / 90"
    assert first["published TFLOP/s"] == "-"
    assert [line["kernel"] for line in others] == list(machine_code.WITHOUT_CODE)
    assert all(line["instructions"] == "-" for line in others)


def test_published_speeds_say_whose_they_are():
    tutorial = {**ROW, "kernel": "Triton's tutorial"}
    first, flash3, _ = (cells(line) for line in machine_code.table([tutorial]))
    assert first["instructions"] == "7.19"  # no entropy there
    assert first["published TFLOP/s"] == "340-403 by the paper of FlashAttention-3"
    assert "333-497" in flash3["published TFLOP/s"]
    fourth = {**ROW, "kernel": "FlashAttention-4"}
    assert cells(machine_code.table([fourth])[0])["published TFLOP/s"] == "-"
    assert all(p.source.startswith("https://") and p.source in machine_code.sources() for p in machine_code.PUBLISHED)


def test_rows_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="entropy off, got two"):
        machine_code.table([ROW, ROW])
    with pytest.raises(ValueError, match="entropy off, got none"):
        machine_code.table([ON])


def test_the_model_of_time_is_judged_at_the_longest_sequence():
    row = {"kernel": "Triton's tutorial", "head_dim": "128", "schedule": "plain", "entropy": "off", "cycles": "3000",
           "tensor_busy": "0.56", "tflops": "500"}  # fmt: skip
    (line,) = machine_code.replay([row])
    cells = dict(zip(machine_code.REPLAY_HEADER, line, strict=True))
    assert cells["published"] == "395, 487" and cells["error"] == "+27 %, +3 %" and cells["tensor cores busy"] == "56 %"
    (line,) = machine_code.replay([{**row, "kernel": "FlashAttention-4", "entropy": "on"}])
    assert line[1] == "FlashAttention-4, plain, with entropy" and line[-2:] == ["-", "-"]


def test_no_error_allows_a_choice_by_the_model_of_time():
    """A model within 10 % could choose between schedules. If this fails, the model has become one: document that."""
    rows = machine_code.replay(read_rows(RESULTS / "replay.csv"))
    errors = [abs(int(error.split()[0])) for line in rows for error in line[-1].split(", ") if error != "-"]
    assert len(errors) >= 4 and max(errors) > 10


def test_our_rows_are_those_of_the_static_model():
    """The two files are written apart, from the same kernels: after a change, write both."""
    ours = [row for row in read_rows(RESULTS / "codegen_peers.csv") if row["kernel"] == "ours"]
    model = [row for row in read_rows(RESULTS / "codegen.csv") if row["target"] == "sm_90"]
    assert len(ours) == len(model) > 0
    for row, expected in zip(ours, model, strict=True):
        assert {name: row[name] for name in expected if name != "triton"} == {
            name: value for name, value in expected.items() if name != "triton"
        }
        assert row["compiler"] == f"triton {expected['triton']}"


def test_the_table_has_every_kernel():
    rows = read_rows(RESULTS / "codegen_peers.csv")
    assert {row["kernel"] for row in rows} == {"ours", "FlashAttention-4", "Triton's tutorial"}
    by_entropy = {row["entropy"] for row in rows if row["kernel"] == "FlashAttention-4"}
    assert by_entropy == {"off", "on"}
