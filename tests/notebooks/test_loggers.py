"""The lines of notebooks/README.md that log to TensorBoard, run as they are written there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import entropy_attn as ea

README = (Path(__file__).parents[2] / "notebooks" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
MAX_LINES = 10


def block(word):
    (found,) = [text for text in BLOCKS if word in text]
    assert len(found.strip().splitlines()) <= MAX_LINES
    return found


@pytest.fixture(scope="module")
def generation():
    """What the lines find: recorders after a generation, its image, and the mean entropies."""
    pytest.importorskip("diffusers")
    pytest.importorskip("matplotlib")
    pipe, entropy, words = ea.shapes.load_pipeline(), ea.EntropyRecorder(), ea.MapRecorder(["red", "circle"])
    with ea.apply(pipe, scale=None, record=[entropy, words]):
        image = pipe("a red circle", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    names = {"np": np, "entropy": entropy, "words": words, "image": image}
    exec(block("means ="), names)
    return names


def test_tensorboard_gets_scalars_a_figure_and_maps(generation, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    exec(block("SummaryWriter"), dict(generation))
    events = EventAccumulator("runs/entropy")
    events.Reload()
    layers = generation["entropy"].to_dataframe()["layer"].unique()
    assert sorted(events.Tags()["scalars"]) == sorted(f"entropy/{layer}" for layer in layers)
    for layer in layers:
        logged = {event.step: event.value for event in events.Scalars(f"entropy/{layer}")}
        assert logged == pytest.approx({step: generation["means"][step, layer] for step in (0, 1)}, rel=1e-6)
    assert sorted(events.Tags()["images"]) == ["heads", "maps/circle", "maps/red"]
    assert events.Images("maps/red")[0].width == generation["image"].width
