"""The sheet of a guidance shows the data of the handles, for any number of words, without overlapping labels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn.guidance import TSAM, AttendAndExcite, Guidance, Prompt
from entropy_attn.plots.guidance import MAX_LABELS, MAX_NUMBERED, guidance_sheet
from entropy_attn.prompts import Text

IMAGES = [Image.new("RGB", (48, 32), color) for color in ("white", "grey")]


@dataclass
class Run:
    """The attributes of a handle of `attach` after a generation of two images, with invented values."""

    guidance: Guidance
    prompts: list[Prompt]
    maps: torch.Tensor
    losses: list = field(default_factory=lambda: [(0, torch.tensor([4.0, 3.0])), (1, torch.tensor([3.5, 2.0]))])


@pytest.fixture(scope="module")
def tokenizer():
    return ea.shapes.load_pipeline().tokenizer


def make_run(tokenizer, prompt: str, guidance: Guidance | None = None, seed: int = 0, **given) -> Run:
    text = Text(prompt, tokenizer)
    random = torch.Generator().manual_seed(seed)
    attention = torch.rand(77, 77, generator=random).tril()
    maps = torch.rand(2, 4, 6, 77, generator=random)
    return Run(guidance or TSAM(), [Prompt(text, text.real, attention)] * 2, maps, **given)


def titles(figure) -> list[str]:
    return [axis.get_title().replace("\n", " ") for axis in figure.axes if axis.get_title()]


def axis_of(figure, title: str):
    return next(axis for axis in figure.axes if axis.get_title().replace("\n", " ") == title)


def test_maps_matrices_and_losses(tokenizer):
    before, after = (make_run(tokenizer, "a red circle", seed=seed) for seed in (0, 1))
    figure = guidance_sheet(after, IMAGES, unguided=before, index=1, subtitle="where from")
    assert figure.get_suptitle() == "a red circle" and figure.get_supxlabel() == "where from"
    assert titles(figure) == [
        *("image", "a", "red", "circle"),
        *("T of the text encoder", "S of the maps without guidance", "S of the maps with guidance"),
        "loss before each update",
    ]
    names = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert names[:2] == ["without guidance", "with guidance"]

    T = after.guidance.text_matrix(after.prompts[1])
    for title, run in (("without", before), ("with", after)):
        shown = axis_of(figure, f"S of the maps {title} guidance").images[0].get_array()
        expected = ea.guidance.attention_similarity(run.maps[1].flatten(0, 1), (4, 6), (1, 2, 3))
        np.testing.assert_allclose(shown.filled(0.0), expected.tril())
    axis = axis_of(figure, "T of the text encoder")
    np.testing.assert_allclose(axis.images[0].get_array().filled(0.0), T)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "red", "circle"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "red", "circle"]
    assert axis.texts[0].get_text() == "1.00" and len(axis.texts) == 6

    lines = axis_of(figure, "loss before each update").lines
    assert [line.get_label() for line in lines] == ["without guidance", "with guidance"]
    assert all(line.get_xydata().tolist() == [[0.0, 3.0], [1.0, 2.0]] for line in lines)


def test_a_word_has_one_color_scale_in_both_rows(tokenizer):
    before, after = make_run(tokenizer, "red circle"), make_run(tokenizer, "red circle")
    before.maps, after.maps = torch.full((2, 4, 6, 77), 0.1), torch.full((2, 4, 6, 77), 0.4)
    before.maps[..., 2] = after.maps[..., 2] = 0.01
    figure = guidance_sheet(after, [IMAGES[0]] * 2, unguided=before)
    shown = [axis.images[0].get_array().astype(float).mean() for axis in figure.axes if axis.images]
    _, red_before, circle_before, red_after, circle_after = shown[:5]
    assert red_before < red_after and circle_before == circle_after == red_after


def test_refinements_are_drawn_within_their_step(tokenizer):
    losses = [(step, torch.tensor([value])) for step, value in ((0, 5.0), (1, 4.0), (1, 3.0), (1, 2.0), (2, 1.0))]
    figure = guidance_sheet(make_run(tokenizer, "red circle", losses=losses), IMAGES[:1])
    (line,) = axis_of(figure, "loss before each update").lines
    assert line.get_xdata() == pytest.approx([0, 1, 4 / 3, 5 / 3, 2])
    assert "S of the maps with guidance" in titles(figure) and "S of the maps without guidance" not in titles(figure)


def test_another_guidance_has_no_matrices(tokenizer):
    run = make_run(tokenizer, "a red circle", AttendAndExcite(tokens="circle"))
    assert titles(guidance_sheet(run, IMAGES[:1])) == ["image", "a", "red", "circle", "loss before each update"]


@pytest.mark.parametrize("count", [2, MAX_NUMBERED, MAX_NUMBERED + 1, MAX_LABELS + 1, 75])
def test_no_labels_overlap(tokenizer, count):
    run = make_run(tokenizer, " ".join((["triangle", "square", "circles", "left", "of"] * 15)[:count]))
    figure = guidance_sheet(run, IMAGES[:1], subtitle="where from")
    figure.canvas.draw()
    assert len([title for title in titles(figure) if title != "image"]) == count + 3
    assert titles(figure).count("image") == 1
    renderer = figure.canvas.get_renderer()
    for axis in figure.axes[-4:]:
        for labels in (axis.get_yticklabels(), [axis.title]):
            boxes = [label.get_window_extent(renderer) for label in labels if label.get_text()]
            assert not any(a.overlaps(b) for at, a in enumerate(boxes) for b in boxes[:at])
    heads = [axis.title.get_window_extent(renderer) for axis in figure.axes if axis.get_title()]
    assert not any(a.overlaps(b) for at, a in enumerate(heads) for b in heads[:at])
    names = axis_of(figure, "T of the text encoder").get_xticklabels()
    gap = min(np.diff([name.get_position()[0] for name in names]))
    cell = axis_of(figure, "T of the text encoder").get_window_extent(renderer).width / count
    assert gap * cell > 0.7 * names[0].get_fontsize() * figure.dpi / 72  # slanted by 55 degrees


def test_refusals(tokenizer):
    run = make_run(tokenizer, "red circle")
    with pytest.raises(ValueError, match=r"pictures: expected 2 \(without guidance, with guidance\), got 1"):
        guidance_sheet(run, IMAGES[:1], unguided=run)
    with pytest.raises(ValueError, match="index: expected an image from 0 to 1, got 2"):
        guidance_sheet(run, IMAGES[:1], index=2)
    run.maps = None
    with pytest.raises(ValueError, match="guided: expected a handle that has maps"):
        guidance_sheet(run, IMAGES[:1])


def test_the_handles_of_a_generation_are_drawn(tmp_path):
    pipe = ea.shapes.load_pipeline()
    with ea.guidance.attach(pipe, TSAM()) as handle:
        images = pipe("a red circle", num_inference_steps=2).images
    guidance_sheet(handle, images).savefig(tmp_path / "a.png")
    tsam = ea.TSAMStableDiffusionPipeline.from_pipe(pipe)
    tsam.set_progress_bar_config(disable=True)
    images = tsam("a red circle", num_inference_steps=2).images
    assert titles(guidance_sheet(tsam.last_guidance, images))[1:4] == ["a", "red", "circle"]
