"""The pass that guidance differentiates: which layers it uses, their gradient, and that nothing is left behind."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from entropy_attn.guidance import TSAM, attention_similarity, tsam_loss
from entropy_attn.guidance.differentiable_maps import GraphMaps
from entropy_attn.integrations.diffusers.apply import apply, plain_routing
from entropy_attn.integrations.diffusers.handle import handle_of
from entropy_attn.integrations.guidance.forward import conditional, layers_by_size, map_layers, text_maps
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.scale import Fixed
from tests.support.tiny_models import TEXT_TOKENS, TEXT_WIDTH, Spy, make_unet

# The layers with maps are below the top level, so that the pass can stop before the last layer.
DEEP = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
}


def make_deep() -> UNet2DConditionModel:
    return make_unet(**DEEP)


def inputs(height: int = 16, width: int = 24, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(batch, 4, height, width, generator=generator),
        torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH, generator=generator),
    )


def maps_of(unet: UNet2DConditionModel, latents: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Of the layers in the middle, so that there is something after them."""
    routing = plain_routing(unet)
    height, width = latents.shape[-2:]
    size, layers = map_layers(routing, (height, width), (height // 2, width // 2))
    call = (latents, torch.tensor(10)), {"encoder_hidden_states": text}
    return text_maps(routing, layers, size, 0, TEXT_TOKENS, call)


def loss_of(maps: torch.Tensor) -> torch.Tensor:
    T = torch.rand(3, 3, generator=torch.Generator().manual_seed(7)).tril()
    return sum(
        tsam_loss(T, attention_similarity(each.flatten(0, 1), tuple(each.shape[:2]), [1, 2, 3])) for each in maps
    )


class Eager(AttnProcessor):
    """The materialized attention of diffusers; keeps head-averaged probabilities with their graph."""

    def __init__(self, notes: dict):
        super().__init__()
        self.notes = notes

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        if encoder_hidden_states is not None:
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            maps = attn.get_attention_scores(query, key, attention_mask).unflatten(0, (-1, attn.heads)).mean(1)
            self.notes[query.shape[1]].append(maps)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_and_gradients_are_those_of_the_full_eager_forward(dtype):
    unet, (latents, text) = make_deep().to(dtype), inputs()
    latents, text = latents.to(dtype).requires_grad_(), text.to(dtype)
    found = maps_of(unet, latents, text)
    (gradient,) = torch.autograd.grad(loss_of(found), latents)

    notes = defaultdict(list)
    unet.set_attn_processor(Eager(notes))
    unet(latents, torch.tensor(10), encoder_hidden_states=text)
    assert len(notes[8 * 12]) == 3  # one on the way down, two on the way up
    expected = torch.stack(notes[8 * 12]).mean(0).unflatten(1, (8, 12))
    (wanted,) = torch.autograd.grad(loss_of(expected), latents)
    assert wanted.abs().max() > 0
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-12}
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(gradient, wanted, **tolerance)


def test_gradients_are_those_of_the_routed_full_forward_bit_for_bit():
    unet, (latents, text) = make_deep(), inputs()
    latents.requires_grad_()
    (stopped,) = torch.autograd.grad(loss_of(maps_of(unet, latents, text)), latents)

    class Patient(GraphMaps):
        def record(self, info, scale, measured, branches, latent_size):
            self._maps[info.layer] = measured

    routing = plain_routing(unet)
    size, layers = map_layers(routing, (16, 24), (8, 12))
    recorder = Patient(layers, TEXT_TOKENS)
    with routing.isolated_pass(recorder, 0):
        unet(latents, torch.tensor(10), encoder_hidden_states=text)
    (full,) = torch.autograd.grad(loss_of(recorder.mean(size)), latents)
    assert torch.equal(stopped, full)


def test_it_stops_after_the_last_map_and_keeps_no_graph_of_the_weights():
    unet, (latents, text) = make_deep(), inputs()
    ran = []
    for name, module in unet.named_modules():
        module.register_forward_pre_hook(lambda m, args, name=name: ran.append(name))
    maps = maps_of(unet, latents.requires_grad_(), text)
    last = "up_blocks.1.attentions.1.transformer_blocks.0.attn2"
    assert ran[-3:] == [f"{last}.to_q", f"{last}.to_k", f"{last}.to_v"]
    assert not any(name.startswith(("up_blocks.2", "conv_out")) for name in ran)
    assert all(parameter.requires_grad for parameter in unet.parameters())
    leaves, stack = set(), [maps.grad_fn]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        stack += [following for following, _ in node.next_functions]
    assert leaves == {id(latents)}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind_after_an_error(error):
    unet, (latents, text) = make_deep(), inputs()
    unet.conv_in.weight.requires_grad_(False)
    before = unet(latents, torch.tensor(10), encoder_hidden_states=text).sample

    def fail(*_):
        raise error

    hook = unet.mid_block.register_forward_pre_hook(fail)
    with pytest.raises(error):
        maps_of(unet, latents, text)
    hook.remove()
    assert type(unet) is UNet2DConditionModel and handle_of(unet) is None
    assert all("_entropy_attn_around" not in vars(module) for module in unet.modules())
    trained = [name for name, parameter in unet.named_parameters() if not parameter.requires_grad]
    assert trained == ["conv_in.weight"]
    assert torch.equal(unet(latents, torch.tensor(10), encoder_hidden_states=text).sample, before)


def test_the_pass_uses_the_scale_of_an_apply_but_not_its_recorders():
    unet, (latents, text) = make_deep(), inputs()
    plain, spy, recorder = maps_of(unet, latents, text), Spy(lambda info: 0.05), EntropyRecorder()
    with apply(unet, scale=spy, record=recorder, layers="all") as handle:
        routed = maps_of(unet, latents, text)
        assert handle.active and handle_of(unet) is handle and len(recorder) == 0
        calls = {info.step for info in spy.calls}
        unet(latents, torch.tensor(10), encoder_hidden_states=text)
    assert calls == {0} and {info.step for info in spy.calls} == {0}  # the guided pass is not counted as a step
    assert len(recorder) == len(handle.layers)
    assert not torch.allclose(routed, plain)
    with apply(unet, scale=Fixed(0.05), layers="all"):
        torch.testing.assert_close(maps_of(unet, latents, text), routed)


@pytest.mark.parametrize(
    "config, latent, size, layers, others",
    [
        (SD15, (64, 64), (16, 16), {"down_blocks.2": 2, "up_blocks.1": 3}, 11),
        (SD15, (96, 64), (24, 16), {"down_blocks.2": 2, "up_blocks.1": 3}, 11),
        (SD15, (65, 63), (17, 16), {"down_blocks.2": 2, "up_blocks.1": 3}, 11),
        (SD15, (48, 48), (12, 12), {"down_blocks.2": 2, "up_blocks.1": 3}, 11),
        (SD15, (32, 32), (16, 16), {"down_blocks.1": 2, "up_blocks.2": 3}, 11),  # a quarter of it is 8 x 8
        (SD15, (16, 16), (16, 16), {"down_blocks.0": 2, "up_blocks.3": 3}, 11),
        (SD15, (8, 8), (8, 8), {"down_blocks.0": 2, "up_blocks.3": 3}, 11),  # it has no more
        (SDXL, (128, 128), (32, 32), {"down_blocks.2": 20, "up_blocks.0": 30, "mid_block": 10}, 10),
    ],
    ids=["SD1.5", "portrait", "odd", "384 px", "256 px", "128 px", "64 px", "SDXL"],
)
def test_layers_at_the_sizes_of_the_large_models(config, latent, size, layers, others):
    with torch.device("meta"):
        handle = plain_routing(UNet2DConditionModel(**config))
    found, names = map_layers(handle, latent, None)
    assert found == size and all(name.endswith("attn2") for name in names)
    for block, count in layers.items():
        assert sum(name.startswith(block) for name in names) == count
    assert len(names) == sum(layers.values())
    assert sum(map(len, layers_by_size(handle, latent).values())) == len(names) + others
    if latent == (64, 64):
        assert names[0] == "down_blocks.2.attentions.0.transformer_blocks.0.attn2"
        assert names[-1] == "up_blocks.1.attentions.2.transformer_blocks.0.attn2"


@pytest.mark.parametrize("latent", [(16, 16), (16, 24), (17, 23), (9, 14)])
def test_sizes_are_those_that_the_layers_see(latent):
    unet = make_deep()
    spy, found = Spy(), layers_by_size(plain_routing(unet), latent)
    latents, text = inputs(*latent)
    with apply(unet, scale=spy, layers="cross"):
        unet(latents, torch.tensor(10), encoder_hidden_states=text)
    assert {i.layer: i.seqlen_q for i in spy.calls} == {
        name: rows * columns for (rows, columns), names in found.items() for name in names
    }


def test_the_error_of_an_unknown_map_size_lists_the_sizes():
    with pytest.raises(ValueError, match=r"map_size=\(3, 3\).*\(4, 4\) \(1 layers\), \(8, 8\) \(3 layers\)"):
        map_layers(plain_routing(make_deep()), (16, 16), TSAM(map_size=(3, 3)).map_size)


def test_the_conditional_half_is_selected():
    batch = torch.arange(4)
    nested = {"a": [batch, batch[:1]], "b": (batch, None), "c": torch.tensor(4)}
    found = conditional(nested, 2, 1, 2)
    assert found["a"][0].tolist() == [2, 3] and found["a"][1].tolist() == [0]
    assert found["b"][0].tolist() == [2, 3] and found["b"][1] is None and found["c"].item() == 4
    assert conditional(batch, 4, 0, 1) is batch
    assert conditional(batch, 2, 0, 2).tolist() == [0, 1]
