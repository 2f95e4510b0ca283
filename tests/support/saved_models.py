"""A tiny Stable Diffusion with random weights, saved once as a diffusers folder, and an invented profile."""

from __future__ import annotations

import json
import string

import numpy as np
import pandas as pd
import pytest
from PIL import Image

LAYERS = (
    ("down_blocks.0.attentions.0.transformer_blocks.0.attn1", 1, 4),
    ("down_blocks.1.attentions.0.transformer_blocks.0.attn1", 2, 4),
    ("mid_block.attentions.0.transformer_blocks.0.attn1", 4, 4),
    ("up_blocks.1.attentions.0.transformer_blocks.0.attn1", 2, 4),
    ("up_blocks.2.attentions.1.transformer_blocks.0.attn1", 1, 4),
)
STDS = dict(zip((layer for layer, _, _ in LAYERS), (0.5, 25.0, 59.0, 2.0, 0.9), strict=True))  # of their logits


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a pipeline for a training size of 32x32 px: VAE factor 2, three UNet levels, sizes multiples of 8."""
    pytest.importorskip("diffusers")
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    letters = list(string.ascii_lowercase)
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: index for index, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77),
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_pipe(tiny_model):
    from entropy_attn.pipelines import load_pipeline

    return load_pipeline(str(tiny_model))


@pytest.fixture
def invented():
    """A profile in the format of `ea.profile`, with a row for every head; entropies are on known lines in ln N."""
    from entropy_attn.profiling import Profile, ProfilePlan, size_name
    from entropy_attn.profiling.rows import _head_means
    from entropy_attn.scale import LogN

    sizes = [(32, 32), (48, 48), (64, 64), (96, 96), (128, 128)]
    lines = {"off": (0.6, 0.4), "logn": (0.5, 0.8)}
    plan = ProfilePlan(
        sizes,
        {"off": None, "logn": LogN()},
        ["a red circle and a blue square", "a green triangle"],
        steps=4,
        reference=(64, 64),
        heads=True,
        regime_steps=2,
    )
    random = np.random.default_rng(0)
    rows, answers, runs, pictures, maps = [], [], [], {}, {}
    for size in sizes:
        for policy, (slope, intercept) in lines.items():
            keys = {"size": size_name(size), "height": size[0], "width": size[1], "policy": policy, "seed": 0}
            runs.append({**keys, "seconds": size[0] / 32})
            pictures[size, policy, 0] = [
                Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)) for _ in plan.prompts
            ]
            for name, factor, heads in LAYERS:
                side = (size[0] // 4 // factor, size[1] // 4 // factor)
                tokens = side[0] * side[1]
                entropy = slope * np.log(tokens) + intercept
                if size == plan.map_size:
                    maps.setdefault(policy, {})[name] = random.uniform(0, np.log(tokens), side)
                if policy == "off":
                    answers += [
                        {**keys, "layer": name, "kind": "self", "step": step, "branch": "cond", "head": head,
                         "seqlen_q": tokens, "seqlen_k": tokens, "text_tokens": 0, "train_tokens": 256 // factor**2,
                         "scale": 0.2, "entropy": entropy, "response": 1.0, "logit_std": STDS[name]}
                        for step in plan.regime_at for head in range(heads)
                    ]  # fmt: skip
                for kind in ("self", "cross"):
                    layer = name if kind == "self" else name.replace("attn1", "attn2")
                    for step in range(plan.steps):
                        for branch in ("cond", "uncond"):
                            for head in range(heads):
                                mean = entropy + 0.1 * (head - 1.5) + 0.05 * (step - 1.5) + 9.0 * (branch == "uncond")
                                row = {
                                    **keys,
                                    "layer": layer,
                                    "kind": kind,
                                    "step": step,
                                    "branch": branch,
                                    "head": head,
                                }
                                row |= {"seqlen_q": tokens, "seqlen_k": tokens if kind == "self" else 77, "scale": 0.2}
                                rows.append({**row, "mean": mean, "std": 0.1, "min": 0.0, "max": np.log(tokens)})
    entropy = pd.DataFrame(rows)
    keys = ["size", "height", "width", "policy", "seed"]
    heads = entropy[entropy["kind"] == "self"].groupby(keys, sort=False).apply(_head_means).reset_index(keys)
    response = pd.DataFrame(answers)
    response["train_tokens"] = response["train_tokens"].astype("Int64")
    return Profile(plan, entropy, pd.DataFrame(runs), pictures, maps, heads, response)
