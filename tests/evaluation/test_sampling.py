"""Images under several arms: paired noise, and files that are read back bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn.evaluation.sampling import (
    Arm,
    Settings,
    as_image,
    batches,
    load_image,
    noise_seed,
    sample_arm,
    save_images,
)
from entropy_attn.pipelines import sample

SETTINGS = Settings(steps=1, guidance_scale=2.0)
PROMPTS = {0: "a", 3: "b", 4: "b"}


def images(pipe, prompts, arm, **options):
    given = {"size": (32, 32), "seed": 0, "settings": SETTINGS} | options
    return {index: np.asarray(image) for index, image in sample_arm(pipe, prompts, arm, **given).items()}


def same(first, second):
    """Equal up to what the batch size does to sums in float32."""
    return np.abs(first.astype(int) - second).max() <= 2


def test_an_image_depends_on_its_prompt_and_index_and_not_on_its_batch(tiny_pipe):
    off, alone = Arm("off"), images(tiny_pipe, {3: "b"}, Arm("off"))
    found = images(tiny_pipe, PROMPTS, off)
    assert list(found) == [0, 3, 4] and same(found[3], alone[3]) and not same(found[3], found[4])


def test_arms_share_their_noise(tiny_pipe):
    off, other = images(tiny_pipe, PROMPTS, Arm("off")), images(tiny_pipe, PROMPTS, Arm("same", ea.scale.Fixed()))
    assert all(same(off[i], other[i]) for i in PROMPTS)
    assert not same(images(tiny_pipe, PROMPTS, Arm("another seed", seed_offset=1))[0], off[0])
    assert same(images(tiny_pipe, PROMPTS, Arm("another seed", seed_offset=1))[0],
                images(tiny_pipe, PROMPTS, Arm("off"), seed=1)[0])  # fmt: skip


def test_noise_seeds_differ():
    seeds = {noise_seed(seed, index) for seed in range(20) for index in range(200)}
    assert len(seeds) == 4000 and max(seeds) < 2**63


def test_one_seed_for_each_prompt(tiny_pipe):
    options = {"size": (32, 32), "scale": None, "steps": 1}
    both = sample(tiny_pipe, ["a", "a"], seed=[1, 2], **options)
    assert same(np.asarray(both[0]), np.asarray(sample(tiny_pipe, ["a"], seed=1, **options)[0]))
    assert same(np.asarray(both[1]), np.asarray(sample(tiny_pipe, ["a"], seed=2, **options)[0]))
    with pytest.raises(ValueError, match="seed: expected one, or one for each of 2 prompts, got 3"):
        sample(tiny_pipe, ["a", "a"], seed=[1, 2, 3], **options)


def test_png_files_hold_the_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    save_images({7: as_image(pixels / 255.0)}, tmp_path)
    assert (np.asarray(load_image(tmp_path, 7)) == pixels).all()


def test_batches():
    assert batches([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3], [4]]
