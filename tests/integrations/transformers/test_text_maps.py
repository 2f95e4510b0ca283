"""Self-attention maps of text encoders, against the maps that eager attention returns."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.transformers import text_attention_maps, text_self_attention_maps

LENGTH, LAYERS = 9, 3
T5_IS_OFFERED = T5EncoderModel._supports_sdpa  # older releases of transformers have only eager attention for T5
IDS = torch.tensor([[48, 5, 6, 7, 8, 49, 49, 49, 49], [48, 9, 10, 11, 12, 13, 14, 15, 49]])
PADDED = torch.tensor([[1] * 6 + [0] * 3, [1] * 9])
MODELS = [
    "clip",
    "clip with projection",
    pytest.param("t5", marks=pytest.mark.skipif(not T5_IS_OFFERED, reason="eager only")),
]


def make(kind: str, implementation: str = "sdpa"):
    torch.manual_seed(0)
    if kind == "t5":
        config = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=LAYERS, num_heads=4, dropout_rate=0.0)
        model = T5EncoderModel._from_config(config, attn_implementation=implementation)
    else:
        config = CLIPTextConfig(
            vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=4,
            max_position_embeddings=LENGTH, bos_token_id=48, eos_token_id=49, pad_token_id=49, projection_dim=16,
        )  # fmt: skip
        cls = CLIPTextModel if kind == "clip" else CLIPTextModelWithProjection
        model = cls._from_config(config, attn_implementation=implementation)
    with torch.no_grad():  # spread the logits, so that the maps differ
        for name, weight in model.named_parameters():
            if "_proj.weight" in name or name.endswith(("q.weight", "k.weight", "relative_attention_bias.weight")):
                weight.mul_(8.0)
    return model.eval()


def footprint(model) -> list:
    """Everything that recording maps could leave behind, in the model and globally."""
    return [
        model.config._attn_implementation,
        dict(AttentionInterface._global_mapping),
        dict(AttentionMaskInterface._global_mapping),
        [(set(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
    ]


@pytest.mark.parametrize("mask", [None, PADDED], ids=["no mask", "padding"])
@pytest.mark.parametrize("kind", MODELS)
def test_maps_are_eager_attentions_mean_over_heads(kind: str, mask):
    model, eager = make(kind), make(kind, "eager")
    eager.load_state_dict(model.state_dict())
    before, plain = footprint(model), model(IDS, attention_mask=mask)
    output, maps = text_self_attention_maps(model, IDS, mask)
    assert footprint(model) == before
    expected = eager(IDS, attention_mask=mask, output_attentions=True)
    torch.testing.assert_close(maps, torch.stack(expected.attentions).mean(2), rtol=1e-4, atol=1e-5)
    assert maps.shape == (LAYERS, 2, LENGTH, LENGTH) and maps.dtype == torch.float32
    for found, wanted in zip(output.to_tuple(), plain.to_tuple(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    if mask is not None:
        assert maps[:, 0, :, 6:].abs().max() == 0 and maps[:, 1].sum(-1).allclose(torch.ones(()))
    if kind != "t5":
        assert maps.triu(1).abs().max() == 0


@pytest.mark.parametrize("kind", MODELS)
def test_maps_are_differentiable(kind: str):
    def gradient(model, maps_of) -> torch.Tensor:
        weight = model.get_input_embeddings().weight
        maps = maps_of(model)
        return torch.autograd.grad((maps * torch.linspace(0, 1, maps.numel()).view_as(maps)).sum(), weight)[0]

    model, eager = make(kind), make(kind, "eager")
    eager.load_state_dict(model.state_dict())
    found = gradient(model, lambda m: text_self_attention_maps(m, IDS, PADDED)[1])
    expected = gradient(
        eager, lambda m: torch.stack(m(IDS, attention_mask=PADDED, output_attentions=True).attentions).mean(2)
    )
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_every_call_in_the_block_adds_its_maps():
    model = make("clip")
    with text_attention_maps(model) as maps:
        model(IDS[:1])
        model(IDS, output_hidden_states=True)
    assert [each.shape[1] for each in maps] == [1, 2]
    torch.testing.assert_close(maps[0][:, 0], maps[1][:, 0])


def test_nested_blocks_of_two_encoders_are_independent():
    first, second = make("clip"), make("clip with projection")
    with text_attention_maps(first) as outer:
        with text_attention_maps(second) as inner:
            first(IDS)
            second(IDS)
        assert len(outer) == len(inner) == 1
        second(IDS)
    assert len(outer) == len(inner) == 1


def test_an_encoder_that_shares_the_configuration_is_not_recorded():
    model = make("clip")
    twin = CLIPTextModel(model.config).eval()
    assert twin.config is model.config
    expected, before = twin(IDS, attention_mask=PADDED).last_hidden_state, footprint(twin)
    with text_attention_maps(model) as maps:
        torch.testing.assert_close(twin(IDS, attention_mask=PADDED).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
        assert not maps
        model(IDS)
    assert len(maps) == 1 and footprint(twin) == before
    assert torch.equal(twin(IDS, attention_mask=PADDED).last_hidden_state, expected)


class Stop(Exception):
    pass


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind(error, implementation: str):
    model = make("clip", implementation)
    before, expected = footprint(model), model(IDS).last_hidden_state

    def stop(*_):
        raise error

    last = next(module for name, module in model.named_modules() if name.endswith("final_layer_norm"))
    hook = last.register_forward_pre_hook(stop)
    with pytest.raises(error), text_attention_maps(model) as maps:
        model(IDS)
    hook.remove()
    assert not maps and footprint(model) == before
    assert torch.equal(model(IDS).last_hidden_state, expected)


def test_an_implementation_chosen_inside_the_block_is_kept():
    model = make("clip")
    with text_attention_maps(model):
        model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


def test_refusals():
    with (
        pytest.raises(TypeError, match=r"text_encoder: expected .* got Linear"),
        text_attention_maps(torch.nn.Linear(2, 2)),
    ):
        pass
    model = make("clip").train()
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.1
    with pytest.raises(RuntimeError, match=r"CLIPAttention: dropout=0\.1"):
        text_self_attention_maps(model, IDS)


@pytest.mark.skipif(T5_IS_OFFERED, reason="T5 uses the attention interface")
def test_an_encoder_without_the_interface_is_refused():
    model = make("t5", "eager")
    before = footprint(model)
    with pytest.raises(Unroutable, match="T5EncoderModel"):
        text_self_attention_maps(model, IDS)
    assert footprint(model) == before
