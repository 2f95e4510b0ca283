"""The page of a large profile stays small: Stable Diffusion 1.5, five sizes, two scales, 50 steps, every head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("altair", reason="needs the extra [explore]")

from entropy_attn.explore import ProfileFolder, WordMaps
from entropy_attn.explore.page import render
from entropy_attn.explore.profile_views import profile_section
from entropy_attn.explore.word_views import words_section

LIBRARY = 950_000  # bytes of Vega with all that it needs; tests/explore/test_profile_page.py holds the whole page to it
LIMIT = 3_000_000
SIZES, STEPS, HEADS = (256, 384, 512, 768, 1024), 50, 8
LEVELS = {"down_blocks.0": (8, 2), "down_blocks.1": (16, 2), "down_blocks.2": (32, 2), "mid_block": (64, 1),
          "up_blocks.1": (32, 3), "up_blocks.2": (16, 3), "up_blocks.3": (8, 3)}  # pixels a token, layers  # fmt: skip
LAYERS = {
    f"{block}.attentions.{index}.transformer_blocks.0.attn1": pixels
    for block, (pixels, count) in LEVELS.items()
    for index in range(count)
}


def sd15():
    random = np.random.default_rng(0)
    tables = []
    for size in SIZES:
        for layer, pixels in LAYERS.items():
            index = pd.MultiIndex.from_product(
                [["off", "logn"], range(STEPS), range(HEADS)], names=["policy", "step", "head"]
            )
            tokens = (size // pixels) ** 2
            rows = index.to_frame(index=False).assign(
                size=f"{size}x{size}", height=size, width=size, seed=0, layer=layer, kind="self", branch="cond",
                seqlen_q=tokens, seqlen_k=tokens, scale=0.158114, mean=random.uniform(0, np.log(tokens), len(index)),
            )  # fmt: skip
            tables.append(rows)
    entropy = pd.concat(tables, ignore_index=True)
    summary = {
        "policies": {"off": "None", "logn": "LogN()"}, "sizes": [f"{size}x{size}" for size in SIZES], "heads": True,
        "steps": STEPS, "seeds": [0], "prompts": ["a fox"], "guidance_scale": 7.5, "training_size": "512x512",
        "notes": [], "pipeline": "StableDiffusionPipeline", "denoiser": "UNet2DConditionModel", "weights": "float16",
    }  # fmt: skip
    maps = {
        policy: {layer: random.uniform(0, 5, (STEPS, 1024 // pixels, 1024 // pixels)).astype(np.float32)
                 for layer, pixels in LAYERS.items()}
        for policy in ("off", "logn")
    }  # fmt: skip
    return ProfileFolder(Path("sd15"), summary, entropy, entropy[entropy["step"] == 0], None, maps)


def test_a_profile_and_word_maps_of_stable_diffusion():
    words = [f"word{index}" for index in range(20)]
    maps = np.random.default_rng(1).uniform(0, 0.01, (len(words), 64, 64))
    sections = [profile_section(sd15()), words_section(WordMaps("words", words, {"mean": maps}))]
    own = [len(render([section], "").encode()) for section in sections]
    print(f"profile {own[0] / 1e6:.2f} MB, word maps {own[1] / 1e6:.2f} MB, without the library")
    assert max(own) + LIBRARY <= LIMIT, own  # each is the page of one command
    assert any("of 50 steps are in this page" in note for note in sections[0].notes)
