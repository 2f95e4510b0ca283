"""`entropy-attn evaluate guidance` from end to end, with small networks of random weights."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

from entropy_attn.cli import main
from entropy_attn.cli.evaluate_guidance import SHAPES_METHOD
from entropy_attn.evaluation.sampling import load_image
from entropy_attn.evaluation.shapes_captions import shapes_prompts
from entropy_attn.pipelines.clip import Clip
from entropy_attn.pipelines.vqa import VQA

CAPTIONS = ["a red circle and a blue square", "a green cross and a red triangle"]
COMMAND = ["evaluate", "guidance", "--steps", "2", "--batch", "2", "--guidance", "tsam:alpha=2.5:steps=0..1"]
ARMS = ["off", "tsam:alpha=2.5:steps=0..1", "another seed", "random direction, tsam:alpha=2.5:steps=0..1", "oracle map"]
COLORS = ["red", "blue"]
QUESTIONS = [
    {"id": "coco_1", "question": "is there a circle?", "choices": ["yes"], "answer": "yes", "element_type": "object"},
    {"id": "coco_1", "question": "what color?", "choices": COLORS, "answer": "red", "element_type": "color"},
    {"id": "coco_2", "question": "what color?", "choices": COLORS, "answer": "blue", "element_type": "color"},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    tifa = [{"id": f"coco_{number}", "caption": text} for number, text in enumerate(CAPTIONS, start=1)]
    (folder / "tifa.json").write_text(json.dumps(tifa))
    (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    return folder


def command(files, out, *more):
    return [*COMMAND, "--prompts", str(files / "tifa.json"), "--out", str(out), *map(str, more)]


@pytest.fixture(scope="module")
def evaluated(files, tmp_path_factory, tiny_clip, networks):
    """All metrics, added to images that were there."""
    out = tmp_path_factory.mktemp("evaluated")
    assert main(command(files, out)) == 0
    first = {path: path.stat().st_mtime_ns for path in sorted(out.glob("images/runs/*/*.png"))}
    metrics = ("--clip", tiny_clip, "--captioner", networks["captioner"], "--questions", files / "questions.json",
               "--vqa", networks["vilt"], "--choice-encoder", networks["encoder"])  # fmt: skip
    assert main(command(files, out, *metrics)) == 0
    assert first == {path: path.stat().st_mtime_ns for path in sorted(out.glob("images/runs/*/*.png"))}
    return out


def test_every_method_stands_beside_its_controls(evaluated):
    rows = pd.read_csv(evaluated / "guidance.csv")
    metrics = ["presence", "binding", "exact count", "CLIP full prompt", "CLIP minimum object", "text-text", "TIFA"]
    assert list(dict.fromkeys(rows.metric)) == metrics
    for metric in metrics:
        assert list(rows[rows.metric == metric].arm) == ARMS
    assert rows.images.eq(2).all()
    repairs = pd.read_csv(evaluated / "repairs.csv")
    assert (repairs.failed + repairs.succeeded == 2).all() and set(repairs.arm) == set(ARMS[1:])
    page = (evaluated / "guidance.md").read_text()
    assert "1 of 2 steps are guided" in page and "for 2 of 2 prompts" in page and "the grammar of shapes" in page
    assert Image.open(evaluated / "images.png").width > 500


def test_noise_is_paired_and_controls_differ(evaluated):
    table = pd.read_csv(evaluated / "images.csv")
    images = {arm: load_image(evaluated / table[table.arm == arm].file.iloc[0].rpartition("/")[0], 0) for arm in ARMS}
    arrays = {arm: np.asarray(image).astype(int) for arm, image in images.items()}
    assert len({array.tobytes() for array in arrays.values()}) == 5
    assert set(table.id) == {"coco_1", "coco_2"} and set(table.category) == {"coco"}

    def distance(arm):
        return abs(arrays["off"] - arrays[arm]).sum()

    assert distance(ARMS[1]) < distance("another seed") and distance(ARMS[3]) < distance("another seed")


def test_scores_are_those_of_the_images(evaluated, tiny_clip, networks):
    table = pd.read_csv(evaluated / "images.csv")
    row = table[(table.arm == ARMS[1]) & (table.prompt == 1)].iloc[0]
    image = Image.open(evaluated / row.file)
    clip, vqa = Clip(tiny_clip), VQA(networks["vilt"])
    found = clip.images([image])[0]
    full, *parts = (float(found @ text) for text in clip.texts([CAPTIONS[1], "a green cross", "a red triangle"]))
    assert row["CLIP full prompt"] == pytest.approx(full, abs=1e-4)
    assert row["CLIP minimum object"] == pytest.approx(min(parts), abs=1e-4)
    assert row.TIFA in (0, 1) and vqa.answer(image, "what color?") in vqa._vqa.model.config.id2label.values()
    captions = json.loads((evaluated / "captions" / "runs" / row.file.split("/")[2] / "run.json").read_text())["found"]
    text = float(clip.texts([captions["1"]["caption"]])[0] @ clip.texts([CAPTIONS[1]])[0])
    assert row["text-text"] == pytest.approx(text, abs=1e-4)
    kinds = pd.read_csv(evaluated / "questions.csv")
    assert kinds[kinds.arm == "off"].questions.tolist() == [2, 1]  # color, object
    mean = table[table.arm == "off"].TIFA.mean()
    rows = pd.read_csv(evaluated / "guidance.csv")
    assert rows[(rows.arm == "off") & (rows.metric == "TIFA")].value.item() == pytest.approx(mean)


def test_it_continues_where_it_stopped(files, evaluated, capsys):
    before = (evaluated / "guidance.csv").read_bytes()
    run = next(iter(sorted((evaluated / "images" / "runs").iterdir())))
    (run / "run.json").rename(run / "gone")  # as if it had been interrupted in this run
    for path in run.iterdir():
        path.unlink()
    run.rmdir()
    assert main(command(files, evaluated, "--json")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in printed["rows"][:5]] == ARMS and printed["prompts"] == CAPTIONS
    again = pd.read_csv(evaluated / "guidance.csv")
    whole = pd.read_csv(pd.io.common.BytesIO(before))
    pd.testing.assert_frame_equal(again, whole[whole.metric.isin(again.metric.unique())])


def test_an_embedded_model_by_its_name_has_captions_objects_and_the_checker(tmp_path, capsys):
    """Without --prompts, --guidance and --shapes."""
    given = ["evaluate", "guidance", "--model", "shapes:unet", "--limit", "2", "--steps", "1", "--batch", "2"]
    assert main([*given, "--out", str(tmp_path), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["model"] == "shapes:unet"
    assert done["prompts"] == [item.text for item in shapes_prompts(2).items]
    arms = ["off", SHAPES_METHOD, "another seed", f"random direction, {SHAPES_METHOD}", "oracle map"]
    assert [row["arm"] for row in done["rows"] if row["metric"] == "presence"] == arms
    assert {row["metric"] for row in done["rows"]} == {"presence", "binding", "exact count"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--captioner", "x"], "--captioner: expected --clip with it"),
        (["--templates", "x"], "--templates: expected --clip with it"),
        (["--vqa", "x"], "--vqa: expected --questions with it"),
        (["--questions", "x"], "--questions: expected --vqa with it"),
        (["--choice-encoder", "x"], "--choice-encoder: expected --vqa with it"),
        (["--guidance", "tsam:beta=3"], "guidance 'tsam:beta=3': expected option=value with one of alpha"),
        (["--guidance", "none"], "guidance: expected one of tsam, attend-and-excite, conform, jedi, syngen, got 'n"),
        (["--guidance", "tsam:alpha=2.5:steps=0..1"], "--guidance: expected different methods"),
        (["--guidance", "tsam:steps=5..6"], "guidance: expected steps below 2, got none in 'tsam:steps=5..6'"),
        (["--limit", "3"], "--limit: expected at most the number of prompts, 2, got 3"),
        (["--limit", "1"], "prompts: expected at least two, for intervals over them, got 1"),
        (["--prompt-format", "csv"], "format: expected 'tifa'"),
        (["--objects", "o.json", "--split-at", "and"], "--objects: expected it without --split-at, got both"),
        (["--split-at", "with"], "objects: expected one of with in every prompt"),
        (["--oracle-alpha", "-1"], "--oracle-alpha: expected"),
        (["--no-shapes"], "metrics: expected clip, questions with vqa, or shapes, got 'none of them'"),
        (["--no-shapes", "--guidance", "conform"], "guidance: conform needs the objects of every prompt"),
    ],
)
def test_refusals(files, tmp_path, capsys, more, message):
    assert main(command(files, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))
