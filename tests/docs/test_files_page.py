"""docs/reference/files.md has all columns and keys of the files that commands really write, and no others."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

import entropy_attn as ea
from entropy_attn.bench.measure import FIELDS
from entropy_attn.cli import main
from entropy_attn.evaluation import cost
from tests.support.markdown import tables
from tests.support.tiny_clip import tiny_clip
from tests.support.tiny_metrics import networks

__all__ = ["networks", "tiny_clip"]

PAGE: dict[str, list[list[str]]] = {}
for title, rows in tables("docs/reference/files.md"):
    PAGE.setdefault(title, []).append([name for row in rows for name in re.findall(r"`([^`]+)`", row[0])])
OF_A_PROFILE = ("entropy.csv", "heads.csv", "regimes.csv", "response.csv.gz", "layers.csv", "summary.json",
                "hold-entropy.json")  # fmt: skip
OF_HEADS = {"head"}, {"heads", "head_min", "head_max"}  # what --heads adds and what it drops
OF_EACH_IMAGE = {"scale": "images.csv of evaluate scale", "guidance": "images.csv of evaluate guidance"}


def page(title: str, table: int = 0) -> list[str]:
    names = PAGE[title][table]
    assert len(set(names)) == len(names)
    return names


def header(path: Path) -> list[str]:
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as file:
        return next(csv.reader(file))


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    out = tmp_path_factory.mktemp("profiled")
    run("profile", "--sizes", "32,64", "--steps", 1, "--regime-steps", 1, "--prompt", "a red circle", "--out", out)
    return out


@pytest.fixture(scope="module")
def recorded():
    """A recorder of entropies, one of mean maps, one of the maps of each step, and the same of single layers."""
    pipe = ea.shapes.load_pipeline()
    recorders = ea.EntropyRecorder(), ea.MapRecorder(), ea.MapRecorder(steps=[0])
    recorders += ea.LayerMapRecorder("image", "text"), ea.LayerMapRecorder("image", "image", steps=[0])
    with ea.apply(pipe, scale=None, record=recorders):
        pipe("a red circle", height=32, width=32, num_inference_steps=1)
    return recorders


@pytest.mark.parametrize("name", OF_A_PROFILE)
def test_files_of_a_profile(name, profiled):
    if name.endswith(".json"):
        found = list(json.loads((profiled / name).read_text()))
    else:
        found = header(profiled / name)
    assert set(found) == set(page(name))


def test_the_plan_of_a_profile(profiled):
    assert set(json.loads((profiled / "plan.json").read_text())) == set(page("plan.json of a profile"))


def test_every_file_of_a_profile_is_on_the_page(profiled):
    """The figures that it draws too."""
    known = {*OF_A_PROFILE, "plan.json", "runs"}
    written = {path.name for path in profiled.iterdir()}
    assert written - known == set(page("Figures of a profile")) and known <= written


def test_runs_of_a_profile(profiled):
    runs = list((profiled / "runs").iterdir())
    assert len(runs) == 4
    for run in runs:
        assert set(json.loads((run / "run.json").read_text())) == set(page("runs of a profile", 1))
    largest = profiled / "runs" / "64x64-off-seed0"
    assert {path.name for path in largest.iterdir()} == set(page("runs of a profile"))  # there is one prompt
    whole, steps = np.load(largest / "maps.npz"), np.load(largest / "steps.npz")
    assert {whole[layer].ndim for layer in whole} == {2} and {steps[layer].ndim for layer in steps} == {3}
    assert {steps[layer].dtype for layer in steps} == {np.dtype("float16")}


def test_rows_of_heads(tmp_path):
    run("profile", "--sizes", 32, "--scale", "off", "--steps", 1, "--regime-steps", 0, "--heads", "--no-pictures",
        "--prompt", "a red circle", "--out", tmp_path)  # fmt: skip
    more, less = OF_HEADS
    assert set(header(tmp_path / "entropy.csv.gz")) == (set(page("entropy.csv")) | more) - less


def test_files_of_recorders(recorded, tmp_path):
    entropies, maps, by_step, by_layer, layers_by_step = recorded
    assert header(entropies.save(tmp_path / "e.csv")) == page("The table of an EntropyRecorder")
    assert header(maps.save(tmp_path / "m.csv")) == page("maps.csv")
    assert set(json.loads(maps.save(tmp_path / "m.json").read_text())[0]) == set(page("maps.csv"))
    whole, steps = np.load(maps.save(tmp_path / "m.npz")), np.load(by_step.save(tmp_path / "s.npz"))
    assert set(steps) == set(page("maps.npz")) == {*whole, "steps"}
    assert header(by_layer.save(tmp_path / "l.csv")) == page("The table of a LayerMapRecorder")
    arrays = np.load(layers_by_step.save(tmp_path / "l.npz"))
    assert set(arrays) == {*page("The arrays of a LayerMapRecorder"), *layers_by_step.layers}
    assert arrays[layers_by_step.layers[0]].ndim == 7
    assert whole["maps"].ndim == 5 and steps["maps"].ndim == 6 and whole["maps"].dtype == np.float32


def test_the_response_recorder_has_the_columns_of_its_file_without_those_of_the_run():
    from entropy_attn.recorders.response import COLUMNS

    assert set(page("response.csv.gz")) - set(COLUMNS) == {"size", "height", "width", "policy", "seed"}
    assert set(COLUMNS) < set(page("response.csv.gz"))


def test_rows_of_the_benchmark():
    """`CsvRows` writes these fields, in this order; test_bench.py runs the command."""
    assert page("bench.csv") == list(FIELDS)


def test_layers_of_a_model(tmp_path):
    run("info", "--model", "shapes", "--csv", tmp_path / "layers.csv")
    assert set(header(tmp_path / "layers.csv")) == set(page("The layers of a model"))


def test_files_of_evaluate_scale(tmp_path):
    run("evaluate", "scale", "--sizes", 64, "--scale", "off,logn", "--limit", 2, "--steps", 1, "--scenes", 2,
        "--out", tmp_path)  # fmt: skip
    assert header(tmp_path / "scale.csv") == page("scale.csv")
    check_images(tmp_path, "scale", set(_metrics(tmp_path / "scale.csv")))
    check_runs(tmp_path)


def test_files_of_evaluate_cost(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "peak_in_new_process", lambda *_: (2.0, 1.0))  # a new process loads everything again
    run("evaluate", "cost", "--sizes", 64, "--steps", 1, "--repeats", 1, "--scale", "off", "--out", tmp_path)
    assert header(tmp_path / "cost.csv") == page("cost.csv")
    check_runs(tmp_path)


def test_files_of_evaluate_guidance(tmp_path, networks):
    captions = [{"id": name, "caption": f"a {name} circle and a green square"} for name in ("red", "blue")]
    question = {"question": "what color?", "choices": ["red", "blue"], "element_type": "color"}
    questions = [{**question, "id": each["id"], "answer": each["id"]} for each in captions]
    (tmp_path / "tifa.json").write_text(json.dumps(captions))
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    out = tmp_path / "out"
    run("evaluate", "guidance", "--steps", 1, "--guidance", "tsam:alpha=2.5:steps=0..1", "--prompts",
        tmp_path / "tifa.json", "--questions", tmp_path / "questions.json", "--vqa", networks["vilt"],
        "--choice-encoder", networks["encoder"], "--out", out)  # fmt: skip
    for name in ("guidance.csv", "repairs.csv", "questions.csv"):
        assert header(out / name) == page(name)
    check_images(out, "guidance", set(_metrics(out / "guidance.csv")))
    check_runs(out)


def check_images(out: Path, what: str, metrics: set[str]) -> None:
    """The columns of the page, and one for each score."""
    found, named = header(out / "images.csv"), set(page(OF_EACH_IMAGE[what]))
    assert named <= set(found) and set(found) - named <= metrics


def check_runs(out: Path) -> None:
    """Every part is named, and has the two files whose keys the page explains."""
    text = Path(__file__).parents[2].joinpath("docs/reference/files.md").read_text(encoding="utf-8")
    plans, records = list(out.rglob("plan.json")), list(out.rglob("run.json"))
    assert plans and records
    for path in plans:
        assert set(json.loads(path.read_text())) == set(page("plan.json and run.json of an evaluation", 1))
        assert f"`{path.parent.name}/`" in text
    for path in records:
        assert set(page("plan.json and run.json of an evaluation")) <= set(json.loads(path.read_text()))


def _metrics(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [row["metric"] for row in csv.DictReader(file)]
