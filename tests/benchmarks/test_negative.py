"""What benchmarks/shapes/negative.py counts, and that it goes on where it was stopped."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

import entropy_attn as ea
from benchmarks.report import scales
from benchmarks.shapes import negative
from entropy_attn.shapes.scenes import COLOURS


def row(objects, of_colour, unknown, colour="red", seed=0):
    return {"arm": "a", "setting": "", "colour": colour, "seed": seed, "objects": objects, "of_colour": of_colour,
            "unknown": unknown}  # fmt: skip


def test_clean_images_have_objects_and_neither_the_color_nor_an_unknown_shape():
    rows = [row(2, 0, 0), row(0, 0, 0), row(2, 1, 0), row(3, 0, 1)]
    found = negative.measures(rows)
    assert found["clean"].tolist() == [1, 0, 0, 0] and found["has the color"].tolist() == [0, 0, 1, 0]
    assert found["objects"].tolist() == [2, 0, 2, 3] and found["unknown objects"].tolist() == [0, 0, 0, 1]


def test_the_summary_is_paired_with_off_and_its_table_has_every_arm():
    off = [row(2, 1, 0, seed=seed) for seed in range(8)] + [row(1, 0, 0, seed=seed) for seed in range(8, 10)]
    less = [row(1, 0, 0, seed=seed) for seed in range(10)]
    chosen = negative.Arm("NAG, chosen", negative.AUTHORS)
    rows = negative.summary({negative.OFF: off, chosen: less})
    of_nag = {each["measure"]: each for each in rows if each["arm"] == chosen.name}
    assert of_nag["has the color"]["difference"] == pytest.approx(-0.8) and of_nag["clean"]["mean"] == 1.0
    assert of_nag["objects"]["difference"] == pytest.approx(-0.8)
    text = [{name: str(each.get(name, "")) for name in negative.SUMMARY} for each in rows]
    table = scales.negatives(text)
    assert [line[0] for line in table] == ["off", chosen.name] and table[0][3] == "0.80"
    assert table[1][3].startswith("0.00 (-0.80 [")


def test_the_control_has_the_text_of_another_color():
    control = next(arm for arm in negative.arms(negative.AUTHORS) if arm.shift)
    for colour in COLOURS:
        assert colour in negative.negative_of(negative.OFF, colour)
        assert colour not in negative.negative_of(control, colour)
    assert {negative.negative_of(control, c) for c in COLOURS} == {negative.text_of(c) for c in COLOURS}


def test_finished_colors_are_not_made_again(tmp_path, monkeypatch):
    class Bar:
        def update(self, count):
            pass

    pipe = ea.shapes.load_pipeline("unet")
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(negative, "COLOURS", {name: COLOURS[name] for name in ("red", "green")})
    chosen = negative.Arm("NAG", negative.AUTHORS)
    first = negative.Maker(pipe, 1, tmp_path / "images.csv", Bar())(chosen, [0, 1])
    assert [(each["colour"], each["seed"]) for each in first] == [("red", 0), ("red", 1), ("green", 0), ("green", 1)]
    again = negative.Maker(None, 1, tmp_path / "images.csv", Bar())(chosen, [0, 1])
    assert [{name: str(value) for name, value in each.items()} for each in first] == again
