"""`evaluate scale` from end to end on tiny models: what is made, what is measured, what is resumed and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

pytest.importorskip("typer")
pytest.importorskip("diffusers")
pytest.importorskip("torchmetrics")
pytest.importorskip("prdc")

import entropy_attn as ea
from entropy_attn.cli import main
from entropy_attn.evaluation import distances, scale_metrics
from entropy_attn.evaluation.features import Features
from entropy_attn.evaluation.sampling import Settings
from entropy_attn.evaluation.scale import Metrics, evaluate_scale
from entropy_attn.evaluation.scale_metrics import loss_rows, score_rows, with_holm
from entropy_attn.evaluation.scale_plan import ScalePlan
from entropy_attn.evaluation.statistics import mcnemar
from entropy_attn.pipelines.clip import Clip
from entropy_attn.runs.folder import slugs

PROMPTS = ["a", "b", "c d", "e", "f", "g", "h"]


def plan_of(**change):
    given = {
        "sizes": [(32, 32), (48, 48)],
        "policies": {"off": None, "x2": ea.scale.Constant(2.0)},
        "prompts": PROMPTS,
        "seeds": [0],
        "settings": Settings(steps=1, guidance_scale=1.0),
        "batch": 4,
    }
    return ScalePlan(**given | change)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("real"), np.random.default_rng(0)
    for index in range(9):
        pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def evaluated(tiny_pipe, tiny_clip, tiny_features, real, tmp_path_factory):
    out, runs = tmp_path_factory.mktemp("out"), []
    metrics = Metrics(real, Features(tiny_features, side=32), Clip(tiny_clip))
    result = evaluate_scale(tiny_pipe, plan_of(), metrics, out, lambda *run: runs.append(run))
    return result, out, runs, metrics


def of(result, metric, policy, size="48x48"):
    (row,) = [r for r in result.rows if (r["metric"], r["policy"], r["size"]) == (metric, policy, size)]
    return row


def images_of(out, policy, size="48x48"):
    """By the names of the files alone."""
    files = sorted((out / "images" / "runs").glob(f"{size}-{policy}-seed0-*/*.png"), key=lambda path: path.name)
    return [Image.open(path).convert("RGB") for path in files]


def test_every_image_is_there(evaluated):
    result, out, runs, _ = evaluated
    for policy in ("off", "x2"):
        images = images_of(out, policy)
        assert len(images) == len(PROMPTS) and {image.size for image in images} == {(48, 48)}
    assert len(result.images) == 2 * 2 * len(PROMPTS) and all((out / row["file"]).is_file() for row in result.images)
    assert [name for name, *_ in runs][:3] == [
        f"images: {name}" for name in ("32x32-off-seed0-000000", "32x32-x2-seed0-000000", "32x32-off-seed0-000004")
    ]


def test_clip_cosines_are_those_of_the_images(evaluated, tiny_clip):
    result, out, *_ = evaluated
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(tiny_clip), CLIPProcessor.from_pretrained(tiny_clip)
    with torch.no_grad():
        cosines = {
            policy: [
                float(model(**processor(text=[text], images=[image], return_tensors="pt")).logits_per_image)
                / float(model.logit_scale.exp())
                for text, image in zip(PROMPTS, images_of(out, policy), strict=True)
            ]
            for policy in ("off", "x2")
        }
    assert of(result, "CLIP cosine", "off")["value"] == pytest.approx(np.mean(cosines["off"]), abs=1e-5)
    change = np.mean(np.subtract(cosines["x2"], cosines["off"]))
    found = of(result, "CLIP cosine", "x2")
    assert found["difference"] == pytest.approx(change, abs=1e-5)
    assert found["difference_low"] <= found["difference"] <= found["difference_high"] and found["images"] == 7


def test_kid_precision_and_recall_are_those_of_the_images(evaluated, tiny_features, real):
    result, out, *_ = evaluated
    net = torch.jit.load(str(tiny_features))

    def features(images):
        pixels = np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in images])
        with torch.no_grad():
            return net(torch.from_numpy(pixels).permute(0, 3, 1, 2)).double().numpy()

    x = features([Image.open(real / f"{i}.png").convert("RGB") for i in range(9)])
    values = {}
    for policy in ("off", "x2"):
        y = features(images_of(out, policy))
        k = {name: (a @ b.T / 8 + 1) ** 3 for name, (a, b) in {"xx": (x, x), "yy": (y, y), "xy": (x, y)}.items()}
        values[policy] = (
            (k["xx"].sum() - k["xx"].trace()) / (9 * 8) + (k["yy"].sum() - k["yy"].trace()) / (7 * 6)
            - 2 * k["xy"].mean()
        )  # fmt: skip
        assert of(result, "KID", policy)["value"] == pytest.approx(values[policy], rel=1e-4, abs=1e-7)
    assert of(result, "KID", "x2")["difference"] == pytest.approx(values["x2"] - values["off"], rel=1e-3, abs=1e-8)
    assert {"precision", "recall", "density", "coverage"} <= {row["metric"] for row in result.rows}
    assert "FID" not in {row["metric"] for row in result.rows}
    assert any("FID is not given: with 7 images it would be mostly bias" in note for note in result.notes)


def test_what_is_finished_is_not_made_again(evaluated, tiny_pipe, monkeypatch):
    result, out, _, metrics = evaluated
    runs = []
    again = evaluate_scale(tiny_pipe, plan_of(), metrics, out, lambda *run: runs.append(run))
    assert all(seconds is None for _, seconds, *_ in runs)
    pd.testing.assert_frame_equal(pd.DataFrame(again.rows), pd.DataFrame(result.rows))
    # FID is there as soon as there are enough images, from the same features
    monkeypatch.setattr(distances, "FEWEST_FID", 7)
    more = evaluate_scale(tiny_pipe, plan_of(), metrics, out)
    store, real = more.stores["features"], more.stores["real"]
    chosen = [name for name in store.runs if name.startswith("48x48-x2")]
    generated, of_real = (
        np.concatenate([np.load(where.path(name) / "features.npy") for name in names])
        for where, names in ((store, chosen), (real, real.runs))
    )
    assert of(more, "FID", "x2")["value"] == distances.fid(of_real, generated) and not more.notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": [*PROMPTS[:-1], "i"]}, r"out: expected prompts=\['a', .*, as in the evaluation in"),
        ({"seeds": [1]}, r"expected seeds=\[0\], as in .*, got \[1\]"),
        ({"settings": Settings(steps=2)}, "expected steps=1, as in .*, got 2"),
    ],
)
def test_another_plan_is_refused_by_name(evaluated, tiny_pipe, change, message):
    _, out, _, metrics = evaluated
    with pytest.raises(ValueError, match=message):
        evaluate_scale(tiny_pipe, plan_of(**change), metrics, out)


def test_another_network_is_refused_before_it_is_mixed(evaluated, tiny_pipe, tmp_path):
    from tests.support.tiny_features import save_network, tiny_network

    _, out, _, metrics = evaluated
    other = Features(save_network(tiny_network(seed=1), tmp_path / "net.pt"), side=32)
    with pytest.raises(ValueError, match=r"out: expected features_sha256='.*as in the evaluation in '.*real'"):
        evaluate_scale(tiny_pipe, plan_of(), Metrics(metrics.real, other), out)


def test_refusals_before_anything_is_sampled(tiny_pipe, tmp_path, real, tiny_features):
    def refused(message, metrics=None, **change):
        with pytest.raises(ValueError, match=message):
            evaluate_scale(tiny_pipe, plan_of(**change), metrics or Metrics(), tmp_path)
        assert not list(tmp_path.iterdir())

    refused("policies: expected 'off' among them.*got \\['x2'\\]", policies={"x2": ea.scale.Constant(2.0)})
    refused("size 33x32: both sides must be multiples of 8", sizes=[(33, 32)])
    refused("sizes: expected different values", sizes=[(32, 32), (32, 32)])
    refused("prompts: expected at least one", prompts=[])
    refused("caption: expected '<a|two|three>", Metrics(shapes=True))
    refused("scenes: expected 0 without shapes", Metrics(scenes=4))
    with pytest.raises(ValueError, match="features: expected it together with real, got None"):
        Metrics(real=real)
    with pytest.raises(ValueError, match="real: expected it together with features, got None"):
        Metrics(features=Features(tiny_features, side=32))


def test_rows_of_scores():
    off = {(prompt, seed): {"presence": float(prompt % 2)} for prompt in range(10) for seed in range(2)}
    on = {key: {"presence": 1.0} for key in off}
    first, second = score_rows("32x32", {"off": off, "on": on}, "off")
    assert first["value"] == 0.5 and first["difference_is"] is None and first["p"] is None
    assert second["difference"] == 0.5 and second["p"] == mcnemar([False, True] * 10, [True] * 20)
    (alone, _) = score_rows("32x32", {"off": {(0, 0): {"found": 3.0}}, "on": {(0, 0): {"found": 4.0}}}, "off")
    assert alone["value"] == 3.0 and np.isnan(alone["low"])
    # With one image of each prompt, shares have Wilson's interval, which has a width even if all are equal
    (whole,) = score_rows("32x32", {"off": {(i, 0): {"presence": 1.0} for i in range(10)}}, "off")
    assert whole["low"] == pytest.approx(1 / (1 + 1.959964**2 / 10)) and whole["high"] == 1.0


def test_tests_of_one_metric_are_adjusted_together():
    rows = [scale_metrics.row("s", str(i), m, 1, scale_metrics._alone(0.0), None, p)
            for m, p in (("a", 0.01), ("a", 0.04), ("b", 0.04), ("b", None)) for i in range(1)]  # fmt: skip
    assert [row["p_holm"] for row in with_holm(rows)] == [0.02, 0.04, 0.04, None]


def test_rows_of_losses():
    off = np.array([[1.0, 2.0, 3.0]])
    (base, row) = loss_rows("s", {"off": off, "on": off * 0.9}, [700], "off")
    assert (row["metric"], row["value"], row["difference_is"]) == ("loss t=700", pytest.approx(1.8), "relative")
    assert (row["difference"], row["difference_low"], row["difference_high"]) == pytest.approx((-0.1,) * 3)
    assert np.isnan(base["difference"])


def test_names_of_policies_become_different_names_of_files():
    assert slugs(["a:b", "a/b", "c"]) == {"a:b": "a_b_0", "a/b": "a_b_1", "c": "c"}


def test_latent_diffusion_of_the_first_generation(tmp_path):
    from tests.support.tiny_pipelines import PIPELINES

    plan = plan_of(sizes=[(48, 32)], prompts=["a", "b"], policies={"off": None, "logn": ea.scale.LogN()})
    result = evaluate_scale(PIPELINES["ldm"].make(), plan, Metrics(), tmp_path)
    assert len(result.images) == 4 and not result.rows
    # Its pipeline always divides by 8, and this autoencoder multiplies by 2
    assert {image.size for image in images_of(tmp_path, "logn", "48x32")} == {(8, 12)}


# The command


def command(out, *more):
    return ["evaluate", "scale", "--sizes", "64,96", "--scale", "off,logn", "--steps", "1", "--limit", "3",
            "--scenes", "2", "--device", "cpu", "--out", str(out), *more]  # fmt: skip


def test_on_shapes(tmp_path, capsys):
    assert main(command(tmp_path, "--json")) == 0
    printed = json.loads(capsys.readouterr().out)
    table = pd.read_csv(tmp_path / "scale.csv")
    assert list(table.columns) == list(scale_metrics.FIELDS) and len(printed["rows"]) == len(table)
    metrics = {"presence", "exact count", "binding", "count error", "found", *(f"loss t={t}" for t in (900, 700, 400))}
    assert set(table["metric"]) == metrics
    same = table[(table["size"] == "64x64") & (table["policy"] == "logn")]  # N = T: the policy changes nothing
    assert (same["difference"].abs() < 1e-4).all()
    page = (tmp_path / "scale.md").read_text()
    assert page.startswith("# Scale policies: shapes\n") and "| 96x96 | logn |" in page
    with Image.open(tmp_path / "images.png") as sheet:
        assert sheet.height > sheet.width
    rows = pd.read_csv(tmp_path / "images.csv")
    assert len(rows) == 12 and Path(tmp_path / rows["file"][0]).is_file()
    assert main([*command(tmp_path), "--seeds", "1"]) == 2
    assert "out: expected seeds=[0], as in the evaluation in" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_evaluation_continues_with_the_same_command(tmp_path):
    arguments = [sys.executable, "-m", "entropy_attn", *command(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment, stdout=subprocess.PIPE)
    try:
        for line in process.stderr:
            if "run 1 of 4: images: 64x64-off-seed0-000000: " in line:
                process.send_signal(signal.SIGKILL)
                break
        process.wait(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "run 1 of 4: images: 64x64-off-seed0-000000: finished before" in done.stderr
    assert len(list((tmp_path / "images" / "runs").iterdir())) == 4


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept(tmp_path):
    arguments = [sys.executable, "-m", "entropy_attn", *command(tmp_path, "--batch", "1")]
    process = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background jobs ignore it
    )  # fmt: skip
    try:
        for line in process.stderr:
            if "run 1 of 12" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in rest, rest
    assert "of 12 runs are kept in" in rest and "the same command continues from there" in rest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--real", "none"), "features: expected it together with real, got None"),
        (("--limit", "0"), "--limit: expected at least 1, got 0"),
        (("--limit", "1000"), "--limit: expected at most the number of prompts, 60, got 1000"),
        (("--prompts", "none.txt"), "none.txt: expected a file that can be read, got No such file"),
        (("--scale", "logn"), "policies: expected 'off' among them"),
        (("--clip", "none"), "clip: expected a folder of a CLIP model with config.json, got 'none'"),
        (("--features", "none.pt"), "features: expected a TorchScript file"),
        (("--shapes", "--scenes", "1"), "scenes: expected 0, or at least 2 for an interval, got 1"),
        (("--no-shapes",), "--prompts: expected a file, got none"),
        (("--model", "shapes-xl"), "--prompts: expected a file, got none"),
    ],
)
def test_refusals_of_the_command(tmp_path, capsys, arguments, message):
    given = ["evaluate", "scale", "--device", "cpu", "--out", str(tmp_path / "out"), *arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out" / "images").exists()


def test_a_model_of_the_user(tiny_model, tiny_clip, tiny_features, real, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\n\nb\nc\n")
    arguments = ["evaluate", "scale", "--model", str(tiny_model), "--sizes", "32", "--steps", "1", "--device", "cpu",
                 "--scale", "off", "--scale", "lognoroot", "--prompts", str(prompts), "--real", str(real),
                 "--features", str(tiny_features), "--side", "32", "--clip", str(tiny_clip),
                 "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(arguments) == 0
    page = capsys.readouterr().out
    assert "1000 KID" in page and "CLIP cosine" in page and "precision and recall are not given" in page
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "images", "real", "features", "clip", "scale.csv", "images.csv", "scale.md", "images.png",
    }  # fmt: skip
