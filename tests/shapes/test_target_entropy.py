"""The entropy that is held without a profile, in the embedded UNet at twice its training size."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

import entropy_attn as ea


def entropies(pipe: Any, size: int, policy: Any) -> pd.Series:
    """Mean entropy of each self-attention layer, from the second step on."""
    recorder = ea.EntropyRecorder()
    with ea.apply(pipe, policy, record=recorder):
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 3, "generator": generator, "output_type": "latent"}
        pipe("a red circle and a blue square", height=size, width=size, **options)
    table = recorder.to_dataframe()
    return table[(table["kind"] == "self") & (table["step"] > 0)].groupby("layer")["mean"].mean()


def test_it_is_nearer_to_the_entropy_of_the_training_size_than_logn():
    pipe = ea.shapes.load_pipeline("unet")
    target = entropies(pipe, 64, None)
    policies = {"logn": ea.scale.LogN(), "head": ea.scale.TargetEntropy(), "layer": ea.scale.TargetEntropy(per="layer")}
    distance = {name: (entropies(pipe, 128, policy) - target).abs().mean() for name, policy in policies.items()}
    assert len(target) == 7
    assert distance["head"] < 0.75 * distance["logn"] and distance["layer"] < 0.75 * distance["logn"], distance
