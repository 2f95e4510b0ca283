"""Guidance of a pipeline with LoRA layers: the guided pass uses them and keeps their strength.

Tested with a minimal LoRA layer that has everything that diffusers and the guided pass use, and with peft if installed.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import entropy_attn as ea
from entropy_attn.guidance import TSAM
from tests.support.guided_pipes import draw
from tests.support.tiny_models import make_text_pipe


class Lora(nn.Module):
    """Like that of peft: a linear layer plus a low-rank one, whose strength can be scaled during a call."""

    def __init__(self, base: nn.Linear, rank: int = 2):
        super().__init__()
        self.base_layer, self.scaling = base, {"default": 1.0}
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.scaling["default"] * self.up(self.down(x))


def add_lora(unet: nn.Module) -> list[Lora]:
    torch.manual_seed(9)
    added = []
    for name in [name for name, _ in unet.named_modules() if name.endswith(("to_q", "to_k", "to_v"))]:
        parent, _, attribute = name.rpartition(".")
        added.append(Lora(unet.get_submodule(name)))
        setattr(unet.get_submodule(parent), attribute, added[-1])
    return added


def scaled_in_forward(unet: nn.Module, layers: list[Lora]) -> None:
    """Scale like older releases of diffusers: around the forward pass, without undoing it if the pass stops early."""
    forward = unet.forward

    @functools.wraps(forward)
    def scaled(*args, cross_attention_kwargs=None, **kwargs):
        strength = (cross_attention_kwargs or {}).get("strength", 1.0)
        for layer in layers:
            layer.scaling["default"] *= strength
        found = forward(*args, **kwargs)
        for layer in layers:
            layer.scaling["default"] /= strength
        return found

    unet.forward = scaled


def test_lora_layers_are_used_and_keep_their_strength():
    pipe = make_text_pipe()
    plain = draw(pipe)
    with ea.guidance.attach(pipe, TSAM()) as handle:
        draw(pipe)
        without = handle.maps
    layers = add_lora(pipe.unet)
    scaled_in_forward(pipe.unet, layers)
    options = {"cross_attention_kwargs": {"strength": 0.5}}  # with "scale" the pipeline would require peft
    expected = draw(pipe, **options)
    assert not torch.equal(expected, plain) and not torch.equal(expected, draw(pipe))
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        assert torch.equal(draw(pipe, **options), expected)
        half = handle.maps
        draw(pipe)
        full = handle.maps
    assert not torch.equal(half, without) and not torch.equal(half, full)
    with ea.guidance.attach(pipe, TSAM()):
        assert not torch.equal(draw(pipe, **options), expected)
    assert {layer.scaling["default"] for layer in layers} == {1.0}
    assert all(parameter.requires_grad for layer in layers for parameter in layer.parameters())


def test_lora_of_peft():
    peft = pytest.importorskip("peft")
    pipe = make_text_pipe()
    pipe.unet.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))
    options = {"cross_attention_kwargs": {"scale": 0.5}}
    expected = draw(pipe, **options)
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)):
        assert torch.equal(draw(pipe, **options), expected)
    with ea.guidance.attach(pipe, TSAM()):
        assert not torch.equal(draw(pipe, **options), expected)
    assert torch.equal(draw(pipe, **options), expected)
