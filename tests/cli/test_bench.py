"""`entropy-attn bench` on the CPU: files, tables, and refused arguments."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from PIL import Image

pytest.importorskip("typer")

from entropy_attn.bench import presets, timing
from entropy_attn.cli import main


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small preset, and short rounds."""
    tiny = presets.Preset((("sd15", (64, 64)),), (16, 40), (32, 64), 64, ("plain", "entropy", "map"), ("forward",))
    monkeypatch.setitem(presets.CPU, "quick", tiny)
    monkeypatch.setattr(timing.CpuClock, "round_ms", 0.0)
    torch.manual_seed(0)


NAMES = ["--implementations", "auto,sdpa,materialised,vk-flash"]


def test_bench_writes_rows_and_figures(tmp_path, capsys):
    out, table = tmp_path / "new", tmp_path / "rows.csv"
    arguments = [
        "bench",
        "--device",
        "cpu",
        *NAMES,
        "--out",
        str(out),
        "--csv",
        str(table),
        "--json",
        "--commit",
        "abc",
    ]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    rows = list(csv.DictReader(table.open()))
    assert table.read_text() == (out / "bench.csv").read_text() and len(rows) == len(printed["rows"])
    assert {row["status"] for row in rows} == {"ok"} and {row["commit"] for row in rows} == {"abc"}
    assert all(float(row["p50_ms"]) > 0 and row["torch"] and row["date"] for row in rows)
    assert {(row["model"], row["task"]) for row in rows} == {
        ("sweep", "plain"), ("sweep", "entropy"), ("sd15", "plain"), ("sd15", "entropy"), ("sd15", "map")
    }  # fmt: skip
    sides = {(step["task"], step["side"]) for step in printed["denoising_steps"]}
    assert sides == {(task, side) for task in ("plain", "entropy", "map") for side in ("ours", "other")}
    for name in ("throughput", "overhead", "memory", "denoising_step"):
        assert Image.open(printed["files"][name]).format == "PNG"


def test_bench_tables(capsys):
    assert (
        main(["bench", "--device", "cpu", "--tasks", "plain,entropy", *NAMES[:1], "auto,sdpa,sage,materialised"]) == 0
    )
    printed = capsys.readouterr().out
    assert "auto against torch's own choice" in printed and "Attention in one denoising step" in printed
    assert "materialised+entropy" in printed and "x): refused: sageattention is not installed" in printed


def test_bench_a_model(capsys):
    arguments = ["--model", "flux", "--size", "64", "--tasks", "map", "--passes", "both", "--json"]
    assert main(["bench", "--device", "cpu", *arguments, "--implementations", "auto,daam"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["model"], row["size"], row["seqlen"], row["pass"]) for row in rows} == {("flux", "64x64", 528, "both")}


def test_bench_a_pipeline_on_disk(tiny_model, capsys):
    arguments = ["--model", str(tiny_model), "--size", "16x24", "--tasks", "plain", "--json"]
    assert main(["bench", "--device", "cpu", *arguments, "--implementations", "auto,sdpa"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["kind"], row["seqlen"], row["batch"]) for row in rows} >= {("self", 96, 2), ("cross", 96, 2)}
    assert sum(row["layers"] for row in rows if row["kind"] == "self") == sum(
        row["layers"] for row in rows if row["kind"] == "cross"
    )


def test_the_shapes_of_a_transformers_calls():
    """Joint attention: text comes first in Flux and last in Stable Diffusion 3, whose guidance doubles the batch."""
    pytest.importorskip("diffusers")
    from entropy_attn.bench.from_pipeline import pipeline_workloads
    from entropy_attn.bench.workloads import Workload
    from tests.recorders.test_joint_maps import CLIP, flux, sd3
    from tests.support.tiny_models import make_vae

    def seen(pipe, size):
        layers = [module for name, module in pipe.transformer.named_modules() if name.endswith("attn")]
        return pipeline_workloads(pipe, "tiny", size), len(layers), layers[0].heads

    found, layers, heads = seen(sd3(), (24, 16))
    text = CLIP + 256
    (joint,) = (workload for workload in found if workload.kind == "joint")
    assert joint == Workload("tiny", "24x16", "joint", 2, heads, 24 + text, 24 + text, joint.head_dim, joint.layers,
                             (24, 24 + text))  # fmt: skip
    found, layers, heads = seen(flux(vae=make_vae()), (24, 16))
    (joint,) = found
    text = 512
    assert (joint.batch, joint.layers, joint.map_keys) == (1, layers, (0, text))
    assert joint.seqlen == joint.seqlen_k == text + 6 * 4


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--preset", "huge"], "preset: expected one of quick, paper, full, got 'huge'"),
        (["--tasks", "speed"], "--tasks: expected some of plain, lse, entropy, map, got 'speed'"),
        (["--passes", "backward"], "--passes: expected some of forward, both, got 'backward'"),
        (["--implementations", "magic"], "got 'magic'"),
        (["--size", "512"], "--size: expected --model with it"),
        (["--model", "no/such/thing/here"], "model: expected"),
        (["--model", "sd14"], "--model: expected one of sd15, sd21, sdxl, pixart, sd3, sd35-large, flux, wan-1.3b"),
        (["--model", "sd14"], "'shapes', a diffusers folder or a Hub id, got 'sd14'"),
        (["--model", "sd15", "--size", "100"], "multiples of 64"),
        (["--model", "sd15", "--tasks", "lse", "--implementations", "daam"], "nothing to measure"),
        (
            ["--model", "sd15", "--size", "64", "--tasks", "plain", "--implementations", "sage"],
            "nothing could be measured",
        ),
        (["--dtype", "int8"], "--dtype: expected one of auto, float32, float16, bfloat16, got 'int8'"),
        (["--device", "cuda:99"], "CUDA devices of this machine, got 'cuda:99'"),
        (["--csv", "rows.txt"], "--csv: expected a name that ends in .csv, got 'rows.txt'"),
    ],
)
def test_bench_refuses_in_one_line(arguments, what, capsys):
    device = [] if "--device" in arguments else ["--device", "cpu"]
    assert main(["bench", *device, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("entropy-attn: error: ") and printed.err.count("\n") == 1
    assert what in printed.err


def test_bench_help_has_an_example(capsys):
    assert main(["bench", "--help"]) == 0
    assert "entropy-attn bench --preset full" in " ".join(capsys.readouterr().out.split())


def test_a_wrong_result_is_exit_code_1(monkeypatch, capsys):
    from entropy_attn.bench.implementations import registry as implementations
    from entropy_attn.bench.implementations.contract import Implementation

    wrong = Implementation("wrong", lambda q, k, v, ask: {"out": v[:, :, :1].expand_as(q)})
    monkeypatch.setitem(implementations.IMPLEMENTATIONS, "wrong", wrong)
    assert main(["bench", "--device", "cpu", "--implementations", "sdpa,wrong", "--tasks", "plain"]) == 1
    printed = capsys.readouterr()
    assert "wrong result(s), which are not timed: wrong: wrong: out: error" in printed.err
    assert "wrong (" in printed.out
