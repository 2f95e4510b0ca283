"""The scale on a model: which calls get which factor, what is composed, what is refused."""

from __future__ import annotations

import math

import pytest
import torch

import entropy_attn as ea
from tests.integrations.comfyui import stub
from tests.integrations.comfyui.loading import part

chain, scale = part("chain"), part("scale")


def scaled(model, **settings):
    return chain.extended(model, scale=scale.scale_of(model, **settings))


class Spy:
    """An override that a model had before: notes what it gets, in the order of the calls."""

    def __init__(self):
        self.calls = []

    def __deepcopy__(self, memo):
        return self

    def __call__(self, func, *args, **kwargs):
        self.calls.append((func, args, kwargs))
        return func(*args, **kwargs)


def watched(**kinds):
    model, spy = stub.model(**kinds), Spy()
    model.model_options["transformer_options"]["optimized_attention_override"] = spy
    return model, spy


def factors(make, size, **kwargs):
    """Factor on the query of each call of the first pass: with the scale, divided by without it."""
    plain, before = watched()
    stub.run(plain, size, (1.0,), **kwargs)
    other, after = watched()
    stub.run(make(other), size, (1.0,), **kwargs)
    found = {}
    for (_, (q, k, *_), _), (_, (q2, k2, *_), _) in zip(before.calls[:2], after.calls[:2], strict=True):
        assert torch.equal(k, k2)  # the first layer sees the same input; attn2's query is computed from attn1's output
        found[k.shape[1]] = float((q2 / q).median())
    return found


def test_only_the_chosen_kind_is_scaled():
    by_self = factors(lambda model: scaled(model, train_size=64), (12, 20))
    assert by_self[240] == pytest.approx(math.sqrt(math.log(240) / math.log(64)))
    by_cross = factors(lambda model: scaled(model, layers="cross", train_tokens=77), (12, 20))
    assert by_cross[240] == pytest.approx(1.0)
    assert by_cross[7] == pytest.approx(math.sqrt(math.log(7) / math.log(77)))


def test_self_and_cross_are_told_apart_where_their_lengths_are_equal():
    """7 text tokens and a level of 1 x 7: lengths say nothing."""
    cond = stub.text(5, length=7)
    kinds = {}
    for layers in ("self", "cross"):
        model, spy = watched()
        stub.run(scaled(model, layers=layers, train_tokens=50), (1, 7), (1.0,), cond=cond)
        plain, before = watched()
        stub.run(plain, (1, 7), (1.0,), cond=cond)
        first = [float((a[1][0] / b[1][0]).median()) for a, b in zip(spy.calls[:1], before.calls[:1], strict=True)]
        kinds[layers] = first[0]
    factor = math.sqrt(math.log(7) / math.log(50))
    assert kinds == {"self": pytest.approx(factor), "cross": pytest.approx(1.0)}


def by_hand(model, factor_of):
    """The model with its attention computed in float64 by the formula: {number of keys: factor on the scale}."""

    def override(func, q, k, v, heads, **kwargs):
        apart = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v)]
        logits = apart[0] @ apart[1].mT * factor_of.get(k.shape[1], 1.0) / math.sqrt(apart[0].shape[-1])
        return (logits.softmax(-1) @ apart[2]).transpose(1, 2).flatten(2)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


@pytest.mark.parametrize(("policy", "power"), [("logn", 0.5), ("lognoroot", 1.0)])
def test_images_are_those_of_the_formula_layer_by_layer(policy, power):
    """Trained at 64 pixels, 8 x 8 and 4 x 4 tokens; sampled with 11 x 20 and 6 x 10."""
    found = stub.run(scaled(stub.model(), policy=policy, train_size=64), (11, 20))
    factors = {220: (math.log(220) / math.log(64)) ** power, 60: (math.log(60) / math.log(16)) ** power}
    torch.testing.assert_close(found, stub.run(by_hand(stub.model(), factors), (11, 20)))
    assert not torch.allclose(found, stub.run(stub.model(), (11, 20)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scaled_query_costs_no_more_than_the_rounding_of_the_dtype(dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 40, dtype=dtype) for n in (65, 129, 129))
    ratio = 1.13
    exact = ea.attention(*(t.double() for t in (q, k, v)), scale=ratio / math.sqrt(40), impl="reference").out
    torch_error = (torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=ratio / math.sqrt(40)) - exact).abs()
    ours = (torch.nn.functional.scaled_dot_product_attention(q * ratio, k, v) - exact).abs()
    assert ours.max() <= 2 * torch_error.max() + torch.finfo(dtype).eps * exact.abs().max()


def test_an_earlier_override_gets_what_comfyui_would_give_it():
    model, spy = watched()
    plain = stub.run(model)
    before, spy.calls = spy.calls, []
    strength_zero = stub.run(scaled(model, train_size=64, strength=0.0))
    assert torch.equal(plain, strength_zero)
    assert len(spy.calls) == len(before)
    for (func, args, kwargs), (func2, args2, kwargs2) in zip(before, spy.calls, strict=True):
        assert func is func2 is stub.attention.__wrapped__
        assert len(args) == len(args2) and kwargs.keys() == kwargs2.keys()


def test_the_model_given_is_not_changed():
    model = stub.model()
    plain = stub.run(model)
    other = scaled(model, train_size=32)
    assert not model.wrappers and model.model_options == {"transformer_options": {}}
    assert not torch.equal(stub.run(other), plain)
    assert torch.equal(stub.run(model), plain)


def test_a_clone_keeps_the_scale():
    other = scaled(stub.model(), train_size=32)
    assert torch.equal(stub.run(other.clone()), stub.run(other))


def test_a_joint_call_counts_the_image_and_on_request_the_text():
    def query_factor(**settings):
        model, spy = watched(denoiser="flux")
        stub.run(scaled(model, train_tokens=9, **settings), (7, 8), (1.0,))
        plain, before = watched(denoiser="flux")
        stub.run(plain, (7, 8), (1.0,))
        return float((spy.calls[0][1][0] / before.calls[0][1][0]).median())

    assert query_factor() == pytest.approx(math.sqrt(math.log(16) / math.log(9)))  # 4 x 4 patches
    assert query_factor(count_text_tokens=True) == pytest.approx(math.sqrt(math.log(23) / math.log(9)))
    assert query_factor(policy="lognoroot") == pytest.approx(math.log(16) / math.log(9))


def test_the_training_size_of_a_joint_model_is_in_patches():
    found = scale.scale_of(stub.model("flux"), train_size=100)  # 13 x 13 latents
    assert (found.train_size, found.train_tokens) == ((13, 13), 49)


def test_reference_latents_count_among_the_keys():
    model, spy = watched(denoiser="flux")
    reference = torch.zeros(2, 4, 4, 4, dtype=torch.float64)
    stub.run(scaled(model, train_tokens=9), (8, 8), (1.0,), ref_latents=[reference])
    plain, before = watched(denoiser="flux")
    stub.run(plain, (8, 8), (1.0,), ref_latents=[reference])
    ratio = float((spy.calls[0][1][0] / before.calls[0][1][0]).median())
    assert ratio == pytest.approx(math.sqrt(math.log(16 + 4) / math.log(9)))


def test_a_call_whose_keys_another_node_changed_is_left_as_it_is(caplog):
    def merging(n, context, value, extra):
        return n, context[:, ::2], value[:, ::2]

    model, spy = watched()
    other = scaled(model, train_size=64)
    other.set_model_attn1_patch(merging)
    with pytest.raises(RuntimeError, match=r"layers='self' met none of 6 attention calls.*32 keys, not 64"):
        stub.run(other, (8, 8), (1.0,))
    assert "left as it is" in caplog.text
    plain, before = watched()
    plain.set_model_attn1_patch(merging)
    stub.run(plain, (8, 8), (1.0,))
    assert torch.equal(spy.calls[0][1][0], before.calls[0][1][0])


def test_tiled_attention_is_left_as_it_is():
    def tiled(n, context, value, extra):
        halves = [t.unflatten(1, (2, -1)).flatten(0, 1) for t in (n, context, value)]
        return tuple(halves)

    def whole(func, q, k, v, heads, **kwargs):
        out = func(q, k, v, heads, **kwargs)
        return out.unflatten(0, (-1, 2)).flatten(1, 2) if len(q) == 4 else out

    model = stub.model()
    model.model_options["transformer_options"]["optimized_attention_override"] = whole
    other = scaled(model, train_size=64)
    other.set_model_attn1_patch(tiled)
    with pytest.raises(RuntimeError, match="4 rows and the batch 2"):
        stub.run(other, (8, 8), (1.0,))


def test_a_video_is_left_as_it_is():
    model = stub.model()
    network = model.model.diffusion_model.forward
    model.model.diffusion_model.forward = lambda *args, num_video_frames: network(*args)
    with pytest.raises(RuntimeError, match="frames of a video"):
        stub.run(scaled(model, train_size=64), num_video_frames=2)


def test_a_pass_that_another_node_skips_is_no_error():
    model = scaled(stub.model(), train_size=64)
    model.model.diffusion_model.forward = lambda x, *_: x
    stub.run(model)


def test_a_second_scale_for_the_same_layers_is_refused():
    model = scaled(stub.model(), train_size=64)
    with pytest.raises(ValueError, match=r"layers: expected layers without a scale, got 'self'"):
        scaled(model, train_size=64)
    both = scaled(model, layers="cross", train_tokens=77)
    assert len(chain.chain_of(both).scales) == 2


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"policy": "log"}, ValueError, "policy: expected 'logn' or 'lognoroot', got 'log'"),
        ({"layers": "all"}, ValueError, "layers: expected 'self' or 'cross', got 'all'"),
        ({"layers": "cross"}, ValueError, "train_tokens: expected for layers='cross'"),
        ({"train_size": -1}, ValueError, "train_size: expected an integer >= 0, got -1"),
        ({"train_size": 512, "train_tokens": 64}, ValueError, "train_tokens: expected 0 with train_size=512, got 64"),
        ({"train_tokens": 6.5}, TypeError, "train_tokens: expected an integer >= 0, got 6.5"),
        ({"strength": float("nan")}, ValueError, "strength: expected a finite number, got nan"),
        ({"direction": "sideways"}, ValueError, "direction: expected 'both', 'up' or 'down'"),
        ({"count_text_tokens": "yes"}, TypeError, "count_text_tokens: expected True or False"),
    ],
)
def test_settings_are_checked_before_anything_is_changed(settings, error, message):
    model = stub.model()
    with pytest.raises(error, match=message):
        scaled(model, **settings)
    assert not model.wrappers and model.model_options == {"transformer_options": {}}


def test_the_training_size_comes_from_the_class_of_the_model_or_has_to_be_given():
    assert scale.scale_of(stub.model()).train_size == (64, 64)
    unlisted = stub.model(config=stub.Unlisted)
    with pytest.raises(ValueError, match=r"train_size: expected .* class Unlisted; 0 takes it .* SD15 512"):
        scale.scale_of(unlisted)
    assert scale.scale_of(unlisted, train_size=768).train_size == (96, 96)


def test_an_unknown_model_is_refused_by_name():
    model = stub.model()
    model.model.diffusion_model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"model: expected a denoiser of the class UNetModel .* got Linear"):
        scaled(model, train_size=512)
