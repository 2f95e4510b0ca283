"""The rule for T of every layer, against the model at its training size, on the meta device."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from entropy_attn.integrations.diffusers import apply
from entropy_attn.scale import token_grid, training_tokens
from tests.support.tiny_models import Spy, denoise, make_unet

_SD = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_SD2 = {**_SD, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
_SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
MODELS = {
    "sd15": {**_SD, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21-base": {**_SD2, "sample_size": 64},
    "sd21": {**_SD2, "sample_size": 96},
    "sdxl": {**_SDXL, "sample_size": 128},
    "ldm256": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "sample_size": 32,
        "cross_attention_dim": 1280,
        "attention_head_dim": 8,
    },
}
# Self-attention tokens at the training size: (tokens, heads, head dim, layers)
KNOWN = {
    "sd15": {(4096, 8, 40, 5), (1024, 8, 80, 5), (256, 8, 160, 5), (64, 8, 160, 1)},
    "sd21-base": {(4096, 5, 64, 5), (1024, 10, 64, 5), (256, 20, 64, 5), (64, 20, 64, 1)},
    "sd21": {(9216, 5, 64, 5), (2304, 10, 64, 5), (576, 20, 64, 5), (144, 20, 64, 1)},
    "sdxl": {(4096, 10, 64, 10), (1024, 20, 64, 60)},
    "ldm256": {(1024, 8, 40, 5), (256, 8, 80, 5), (64, 8, 160, 5), (16, 8, 160, 1)},
}
SIZES = [(64, 64), (96, 96), (32, 32), (48, 80), (28, 28), (33, 47), (61, 61), (9, 7)]


@functools.cache
def meta_unet(model: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**MODELS[model]).eval()


@functools.cache
def self_attention_tokens(model: str, height: int, width: int) -> dict[str, tuple[int, int, int]]:
    """{layer: (tokens, heads, head dim)}, from a forward pass without data."""
    unet, seen, hooks = meta_unet(model), {}, []
    for name, module in unet.named_modules():
        if isinstance(module, Attention) and name.endswith("attn1"):

            def note(module: Attention, args: tuple, name: str = name) -> None:
                seen[name] = (args[0].shape[1], module.heads, module.inner_dim // module.heads)

            hooks.append(module.register_forward_pre_hook(note))
    with torch.device("meta"), torch.no_grad():
        text = torch.empty(1, 77, unet.config.cross_attention_dim)
        added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)} if model == "sdxl" else None
        unet(torch.empty(1, 4, height, width), torch.empty(1), encoder_hidden_states=text, added_cond_kwargs=added)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("model", MODELS)
def test_topologies_are_the_known_ones(model: str):
    size = MODELS[model]["sample_size"]
    layers = list(self_attention_tokens(model, size, size).values())
    assert {(*layer, layers.count(layer)) for layer in layers} == KNOWN[model]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_rule_agrees_with_the_model(model: str, size: tuple[int, int]):
    train = MODELS[model]["sample_size"]
    at_training = self_attention_tokens(model, train, train)
    for layer, (tokens, *_rest) in self_attention_tokens(model, *size).items():
        assert training_tokens(tokens, size, (train, train)) == at_training[layer][0], layer
        assert math.prod(token_grid(tokens, size)) == tokens, layer


def test_rule_with_a_training_size_that_is_not_square():
    train = (48, 80)
    at_training = self_attention_tokens("sd15", *train)
    for layer, (tokens, *_rest) in self_attention_tokens("sd15", 33, 47).items():
        assert training_tokens(tokens, (33, 47), train) == at_training[layer][0], layer


def test_a_single_token():
    assert training_tokens(1, (1, 1), (64, 64)) == 4096
    assert training_tokens(1, (8, 8), (64, 64)) == 64


def test_merged_tokens_have_the_T_of_their_level():
    """With 32x32 cells, a layer after one downsampling has 256 tokens; at the training size of 16x16 cells, 64."""
    for merged in (256, 250, 192, 128, 77, 64, 16, 1):
        assert training_tokens(merged, (32, 32), (16, 16), halvings=1) == 64
    assert training_tokens(512, (32, 32), (16, 16), halvings=0) == 256
    assert training_tokens(30, (9, 7), (16, 24), halvings=2) == 4 * 6


@pytest.mark.parametrize("model", MODELS)
def test_the_level_from_the_name_of_a_layer_agrees_with_its_tokens(model: str):
    from entropy_attn.integrations.diffusers.models.unet_levels import halvings

    unet, train = meta_unet(model), MODELS[model]["sample_size"]
    for size in ((64, 64), (33, 47)):
        for layer, (tokens, *_rest) in self_attention_tokens(model, *size).items():
            level = halvings(unet, layer)
            found = training_tokens(tokens, size, (train, train), halvings=level)
            assert found == training_tokens(tokens, size, (train, train)), layer
            assert training_tokens(max(tokens // 2, 1), size, (train, train), halvings=level) == found, layer


@pytest.mark.parametrize(("given", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError), ("1", TypeError)])
def test_invalid_levels(given: object, error: type[Exception]):
    with pytest.raises(error, match=r"halvings: expected"):
        training_tokens(64, (32, 32), (16, 16), halvings=given)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: training_tokens(0, (8, 8), (8, 8)), "num_tokens: expected .*got 0"),
        (lambda: training_tokens(2.5, (8, 8), (8, 8)), "num_tokens: expected .*got 2.5"),
        (lambda: training_tokens(4, (8, 0), (8, 8)), r"latent_size: expected .*got \(8, 0\)"),
        (lambda: training_tokens(4, (8, 8), 8), "train_size: expected .*got 8"),
        (lambda: training_tokens(4, (8, 8), (8, 8, 8)), "train_size: expected"),
        (lambda: token_grid(-4, (8, 8)), "num_tokens: expected .*got -4"),
        (lambda: token_grid(4, "88"), "latent_size: expected .*got '88'"),
    ],
)
def test_invalid_counts_and_sizes(call, named):
    with pytest.raises((TypeError, ValueError), match=named):
        call()


def test_a_layer_with_merged_keys_has_the_T_of_its_level():
    """If a processor merges half of the keys, T is still that of the trained layer, which its name tells."""

    class Merged(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
            return super().__call__(attn, hidden_states, hidden_states[:, ::2], **kwargs)

    unet, spy = make_unet(), Spy()
    processors = {name: Merged() if "attn1" in name else processor for name, processor in unet.attn_processors.items()}
    unet.set_attn_processor(processors)
    with apply(unet, scale=spy, train_size=(16, 16)), torch.no_grad():
        denoise(unet, 32, 32)
    found = {(info.seqlen_k, info.train_tokens) for info in spy.calls if info.kind != "cross"}
    assert found == {(512, 256), (128, 64)}
