"""Routed models under torch.compile: as many graphs as without routing, for any scale at each step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from entropy_attn.integrations.diffusers import apply
from entropy_attn.scale import Fixed, LogN
from tests.support.compiled_denoisers import call_at, graphs
from tests.support.tiny_denoisers import CASES
from tests.support.tiny_models import Spy

WHOLE = ("ldm", "if", "sd3", "flux", "wan")
REPEATED = ("flux", "wan")


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tall(name: str) -> Any:
    """A denoiser with more blocks than torch.compile would compile separately."""
    denoiser = CASES[name].make()
    config = dict(denoiser.config)
    for key in config:
        if key in ("num_layers", "num_single_layers", "num_mmdit_layers", "num_single_dit_layers"):
            config[key] = 10
    return type(denoiser)(**{key: value for key, value in config.items() if not key.startswith("_")}).eval()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ("ldm", "if") else name for name in WHOLE]
)
def test_a_denoiser_is_one_graph(name: str):
    denoiser = CASES[name].make()
    plain, _ = graphs(name, denoiser, repeated=False)
    spy = Spy(lambda info: 0.2 + 0.1 * info.step)
    with apply(denoiser, scale=spy, layers="all", train_size=16) as handle:
        routed, outputs = graphs(name, denoiser, repeated=False)
        assert {info.step for info in spy.calls} == {0, 1, 2}
        compiled = [(info.layer, info.kind, info.seqlen_k, info.text_tokens, info.train_tokens) for info in spy.calls]
        spy.calls.clear()
        handle.reset_steps()
        with torch.no_grad():
            eager = [denoiser(**call_at(name, CASES[name].sizes[0], step), return_dict=False)[0] for step in range(3)]
        assert compiled == [
            (info.layer, info.kind, info.seqlen_k, info.text_tokens, info.train_tokens) for info in spy.calls
        ]
    assert plain == routed == 1
    for ours, other in zip(outputs, eager, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-4)


@pytest.mark.parametrize("name", REPEATED)
def test_repeated_blocks_share_their_graphs(name: str):
    denoiser = tall(name)
    plain, expected = graphs(name, denoiser, repeated=True)
    with apply(denoiser, scale=lambda info: 0.1 + 0.01 * info.step, layers="self", train_size=16):
        routed, outputs = graphs(name, denoiser, repeated=True)
    assert routed == plain
    assert not torch.allclose(outputs[0], expected[0], atol=1e-4)


@pytest.mark.parametrize(
    "name, sizes",
    [
        pytest.param("ldm", [(16, 16), (32, 24)], marks=pytest.mark.slow),
        ("flux", [(16, 16), (24, 16), (32, 24)]),
    ],
)
def test_other_sizes_make_no_more_graphs_than_without_routing(name: str, sizes: list[tuple[int, int]]):
    denoiser = CASES[name].make()
    plain, _ = graphs(name, denoiser, repeated=False, sizes=sizes)
    with apply(denoiser, scale=LogN(), train_size=16):
        routed, outputs = graphs(name, denoiser, repeated=False, sizes=sizes)
        with torch.no_grad():
            eager = [denoiser(**call_at(name, size, step), return_dict=False)[0] for step, size in enumerate(sizes)]
    assert routed <= plain
    for ours, other in zip(outputs, eager, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-4)


def test_a_policy_with_a_gradient_is_refused():
    denoiser = CASES["sd3"].make()
    factor = torch.tensor(0.3, requires_grad=True)
    with apply(denoiser, scale=lambda info: factor), pytest.raises(ValueError, match=r"a tensor with a gradient"):
        graphs("sd3", denoiser, repeated=False)


def test_the_operator():
    from entropy_attn.integrations.diffusers.compiled import layer_scale

    denoiser = CASES["sd3"].make()
    with apply(denoiser, scale=lambda info: torch.linspace(0.1, 0.2, info.num_heads)) as handle:
        arguments = (torch.tensor(0), handle._number, -1, 0, 0, 22, 22, 2, 16, 0.25, torch.device("cpu"))
        assert layer_scale(*arguments).tolist() == pytest.approx([0.1, 0.2])
        torch.library.opcheck(layer_scale, arguments)


def test_processors_that_were_replaced_are_routed():
    from diffusers.models.attention_processor import JointAttnProcessor2_0

    denoiser = CASES["sd3"].make()
    with apply(denoiser, scale=Fixed(0.05)):
        expected = denoiser(**CASES["sd3"].call(8, 8), return_dict=False)[0]
        for module in denoiser.modules():
            if isinstance(getattr(module, "processor", None), JointAttnProcessor2_0):
                module.set_processor(JointAttnProcessor2_0())
        count, outputs = graphs("sd3", denoiser, repeated=False)
    assert count == 1
    torch.testing.assert_close(outputs[0], expected.detach(), rtol=1e-3, atol=1e-4)
