"""`evaluate cost`: what is measured, what does not apply, and views of MultiDiffusion."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn.cli import main
from entropy_attn.evaluation import cost
from entropy_attn.evaluation.cost import CostPlan, evaluate_cost, generate, not_applicable
from entropy_attn.evaluation.cost_clock import generation_time, peak_in_new_process
from entropy_attn.evaluation.cost_report import cost_page
from entropy_attn.evaluation.sampling import Settings
from entropy_attn.pipelines.multidiffusion import multidiffusion, starts
from entropy_attn.pipelines.sampling import sample
from tests.support.child_work import exit_at_once, take

POLICIES = {"off": None, "logn": ea.scale.LogN()}


def plan_of(**change):
    given = {
        "sizes": [(32, 32), (48, 48)],
        "policies": POLICIES,
        "prompt": "a",
        "settings": Settings(1, 1.0),
        "repeats": 2,
    }
    return CostPlan(**given | change)


@pytest.fixture
def measured(tiny_pipe, tmp_path, monkeypatch):
    """With clocks that know what they time: the name of the way decides the seconds, the size the memory."""
    seconds = {"off": 2.0, "logn": 3.0, "resampled": 1.0, "MultiDiffusion": 8.0}
    order = []

    def timed(device, run):
        _, _, way, size = run.args
        order.append((way, size))
        return seconds[way] * size[0] + len(order) / 100

    monkeypatch.setattr(cost, "generation_time", timed)
    monkeypatch.setattr(
        cost, "peak_in_new_process", lambda prepare, load, plan, way, size: (100.0 + size[0], size[0] / 1)
    )
    runs = []
    rows = evaluate_cost(lambda: tiny_pipe, plan_of(), tmp_path, on_run=lambda *run: runs.append(run))
    return rows, order, runs, tmp_path


def test_ways_alternate_in_both_orders(measured):
    _, order, *_ = measured
    assert [way for way, _ in order[:6]] == ["off", "logn", "MultiDiffusion", "MultiDiffusion", "logn", "off"]
    assert (
        [way for way, _ in order[6:10]]
        == ["off", "logn", "resampled", "MultiDiffusion"]
        == [way for way, _ in order[10:]][::-1]
    )


def test_rows_are_medians_ranges_and_paired_ratios(measured):
    rows, *_ = measured
    of = {(row["size"], row["way"]): row for row in rows}
    row = of["48x48", "logn"]  # the second and the third last but one of the runs of this size
    first, second = 3.0 * 48 + 0.08, 3.0 * 48 + 0.13
    assert (row["seconds_min"], row["seconds_max"]) == pytest.approx((first, second))
    assert row["seconds"] == pytest.approx((first + second) / 2) and row["repeats"] == 2
    assert row["times_off_min"] == pytest.approx(min(first / (96 + 0.07), second / (96 + 0.14)))
    assert row["peak_mib"] == 148.0 and row["extra_mib"] == 48.0
    assert of["32x32", "resampled"]["not_applicable"] == "this is the training size"
    assert of["32x32", "resampled"]["seconds"] is None and of["32x32", "resampled"]["repeats"] == 0
    page = "\n".join(cost_page(rows, plan_of(), {"device": "cpu"}))
    assert "| resampled | - | 48." in page and "resampled at 32x32: this is the training size" in page


def test_what_is_measured_is_not_measured_again(measured, tiny_pipe):
    rows, order, runs, out = measured
    before = len(order)
    again = evaluate_cost(lambda: tiny_pipe, plan_of(), out, on_run=lambda *run: runs.append(run))
    assert again == rows and len(order) == before
    with pytest.raises(ValueError, match=r"out: expected steps=1, as in .*, got 2"):
        evaluate_cost(lambda: tiny_pipe, plan_of(settings=Settings(2, 1.0)), out)


def test_resampled_is_the_image_of_the_training_size(tiny_pipe):
    large = generate(tiny_pipe, plan_of(), "resampled", (48, 64))
    small = generate(tiny_pipe, plan_of(), "off", (32, 32))
    assert large.size == (64, 48)
    assert (np.asarray(large) == np.asarray(small.resize((64, 48), 3))).all()  # 3 is bicubic


def test_views_cover_every_side():
    for side, window in ((16, 16), (17, 16), (24, 16), (40, 16), (96, 64), (7, 3)):
        found = starts(side, window)
        covered = {cell for start in found for cell in range(start, start + window)}
        assert covered == set(range(side)) and found[-1] + window == side and len(set(found)) == len(found)


def test_multidiffusion_is_that_of_diffusers_where_its_views_fit():
    """With 64 x 64 latents of 8 pixels, the views are those of the unchanged pipeline."""
    from diffusers import StableDiffusionPanoramaPipeline

    theirs = StableDiffusionPanoramaPipeline.get_views(None, 768, 1024)
    step = [(top, top + 64, left, left + 64) for top in starts(96, 64) for left in starts(128, 64)]
    assert theirs == step


def test_at_the_training_size_multidiffusion_is_one_view(tiny_pipe):
    options = {"size": (32, 32), "scale": None, "seed": 0, "steps": 2, "guidance_scale": 3.0}
    (plain,), (joined,) = sample(tiny_pipe, ["a"], **options), sample(multidiffusion(tiny_pipe), ["a"], **options)
    assert np.abs(np.asarray(plain).astype(int) - np.asarray(joined)).max() <= 1
    calls, original = [], type(tiny_pipe.unet).forward

    def count(self, sample, *given, **more):
        calls.append(tuple(sample.shape[-2:]))
        return original(self, sample, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tiny_pipe.unet), "forward", count)
        sample(multidiffusion(tiny_pipe), ["a"], **{**options, "size": (32, 48), "steps": 1})
    assert set(calls) == {(16, 16)} and len(calls) == len(starts(24, 16))


def test_where_multidiffusion_does_not_apply(tiny_pipe):
    assert "no side can be smaller" in not_applicable(tiny_pipe, "MultiDiffusion", (16, 64))

    class Other(type(tiny_pipe)):
        pass

    other = Other(**tiny_pipe.components, requires_safety_checker=False)
    assert "StableDiffusionPipeline only, not for Other" in not_applicable(other, "MultiDiffusion", (64, 64))
    with pytest.raises(ValueError, match="StableDiffusionPipeline only, not for Other"):
        multidiffusion(other)


# Clocks


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_peak_memory_of_a_new_process():
    peak, extra = peak_in_new_process(take, 200)
    assert 195 < extra < 230 and peak > extra
    with pytest.raises(ValueError, match=r"memory: expected an answer .*, got exit code 3"):
        peak_in_new_process(exit_at_once)


def test_time_on_a_cpu_is_that_of_the_processor():
    waiting = generation_time(torch.device("cpu"), lambda: time.sleep(0.2))
    assert waiting < 0.1

    def work():
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass

    assert 0.1 <= generation_time(torch.device("cpu"), work) < 0.2


def test_refusals(tmp_path, capsys):
    with pytest.raises(ValueError, match="policies: expected other names than resampled and MultiDiffusion"):
        plan_of(policies={"off": None, "resampled": None})
    with pytest.raises(ValueError, match="repeats"):
        plan_of(repeats=0)
    with pytest.raises(ValueError, match="sizes: expected different values"):
        plan_of(sizes=[(32, 32), (32, 32)])
    for arguments, message in ((("--repeats", "0"), "--repeats: expected at least 1, got 0"),
                               (("--sizes", "65"), "size 65x65: both sides must be multiples of")):  # fmt: skip
        assert main(["evaluate", "cost", "--device", "cpu", "--out", str(tmp_path / "out"), *arguments]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out" / "cost").exists()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_the_command(tiny_model, tmp_path, capsys):
    arguments = ["evaluate", "cost", "--model", str(tiny_model), "--sizes", "48", "--steps", "1", "--repeats", "1",
                 "--scale", "off", "--prompt", "a", "--device", "cpu", "--json", "--out", str(tmp_path)]  # fmt: skip
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["way"] for row in printed["rows"]] == ["off", "resampled", "MultiDiffusion"]
    assert all(row["seconds"] > 0 and row["peak_mib"] > row["extra_mib"] >= 0 for row in printed["rows"])
    table = pd.read_csv(tmp_path / "cost.csv")
    assert set(cost.FIELDS) | {"device", "machine", "torch", "date"} <= set(table.columns) and len(table) == 3
    assert "## Peak memory" in (tmp_path / "cost.md").read_text()
