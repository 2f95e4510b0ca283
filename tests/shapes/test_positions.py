"""Positions of image tokens of the embedded transformer: in the canvas of training, or continued beyond it."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("diffusers")

from entropy_attn import shapes
from entropy_attn.shapes.positions import InterpolatedRotary, interpolate_positions
from tests.support.shapes_transformer import shapes_transformer

__all__ = ["shapes_transformer"]

MASK = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])


@pytest.fixture
def load(shapes_transformer, monkeypatch):
    """`load_pipeline` of the embedded transformer, with options."""
    monkeypatch.setitem(shapes.MODELS, "transformer", shapes_transformer)
    return lambda **options: shapes.load_pipeline("transformer", **options)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (6, 6), (12, 12), (16, 16), (8, 16), (3, 24)])
def test_tokens_stand_in_the_canvas_of_training(load, height, width):
    pipe = load(positions="extrapolated")
    plain = pipe.transformer.rope_embedder
    interpolate_positions(pipe.transformer)
    latents = torch.randn(2, 8, height, width)
    expected = plain(latents, MASK)
    tokens, caption, image, joint, captions, lengths = pipe.transformer.rope_embedder(latents, MASK)
    assert torch.equal(tokens, expected[0]) and torch.equal(caption, expected[1])  # words stay where they were
    assert (captions, lengths) == expected[4:]

    stretch = math.sqrt(height * width) / 8
    first, rows, columns = (dims // 2 for dims in plain.axes_dim)
    for i in (0, height * width // 2, height * width - 1):
        row, column = divmod(i, width)
        angles = [((row + 0.5) / stretch - 0.5) * 10000 ** (-2 * pair / (2 * rows)) for pair in range(rows)]
        angles += [((column + 0.5) / stretch - 0.5) * 10000 ** (-2 * pair / (2 * columns)) for pair in range(columns)]
        wanted = torch.polar(torch.ones(rows + columns, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64))
        torch.testing.assert_close(image[:, i, first:], wanted.expand(2, -1), rtol=0, atol=1e-12)
        assert torch.equal(image[:, i, :first], expected[2][:, i, :first])
    for i, (start, end) in enumerate(zip(captions, lengths, strict=True)):
        assert torch.equal(joint[i, :start], expected[3][i, :start])
        assert torch.equal(joint[i, start:end], image[i])


def test_the_training_size_stays_bit_for_bit(load):
    latents = torch.randn(2, 8, 8, 8)
    one = load().transformer.rope_embedder(latents, MASK)
    other = load(positions="extrapolated").transformer.rope_embedder(latents, MASK)
    for mine, plain in zip(one, other, strict=True):
        assert torch.equal(mine, plain) if isinstance(mine, torch.Tensor) else mine == plain


def test_sizes_alternate(load):
    """A size leaves nothing behind for the next."""
    embedder = load().transformer.rope_embedder
    small, large = torch.randn(2, 8, 8, 8), torch.randn(2, 8, 12, 16)
    before = embedder(small, MASK)[2]
    embedder(large, MASK)
    assert torch.equal(embedder(small, MASK)[2], before)


def test_what_load_pipeline_takes(load):
    assert isinstance(load().transformer.rope_embedder, InterpolatedRotary)
    assert isinstance(load(positions="interpolated").transformer.rope_embedder, InterpolatedRotary)
    assert not isinstance(load(positions="extrapolated").transformer.rope_embedder, InterpolatedRotary)
    with pytest.raises(ValueError, match="positions: expected one of None, 'interpolated', 'extrapolated' for "):
        load(positions="ntk")
    with pytest.raises(ValueError, match="positions: expected one of None for 'unet', got 'interpolated'"):
        shapes.load_pipeline("unet", positions="interpolated")


def test_only_its_transformer_is_interpolated():
    with pytest.raises(ValueError, match="transformer: expected a Lumina2Transformer2DModel, got None"):
        interpolate_positions(None)
