"""Routed calls that are operators in the graphs of torch.compile: key groups, scales of samples, records, mixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers import apply
from entropy_attn.integrations.diffusers.compiled import routed_attention
from entropy_attn.integrations.diffusers.handle import Handle
from entropy_attn.mix import SoftPAG
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.recorders.layer_maps import LayerMapRecorder
from entropy_attn.scale import TACA, Constant, KeyGroups, OfBranch, Regions, TargetEntropy
from tests.support.compiled_denoisers import call_at, graphs
from tests.support.tiny_denoisers import CASES, TEXT
from tests.support.tiny_models import make_pipe, sample

SIZE = (12, 8)


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Turns:
    """Key groups whose values, forms and groups change from step to step, and at one step none."""

    gives_key_groups = True

    def __call__(self, info: Any) -> KeyGroups | float | None:
        step, text = info.step, info.text_keys
        if step == 1 or info.kind != "joint":
            return None if step else 0.2
        if step == 0:
            return KeyGroups(key_scale=[(text, 1.5)], key_rows=info.image_rows)
        table = torch.linspace(-1.0, 1.0, 2 * info.seqlen_k).view(2, -1) * step
        return KeyGroups(0.3, key_bias=table, key_rows=torch.arange(info.seqlen_q) % 2)


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "TACA": lambda: {"scale": TACA(2.0, from_timestep=None)},
    "key groups that change": lambda: {"scale": Turns()},
    "a scale of each sample": lambda: {"scale": sampled()},
    "TargetEntropy": lambda: {"scale": TargetEntropy(clamp=(None, None)), "train_size": 8},
    "rows": lambda: {"scale": Constant(1.5), "rows": "image"},
    "mix": lambda: {"scale": None, "mix": SoftPAG(0.5)},
}


def sampled() -> Any:
    def policy(info: Any) -> Tensor:
        return torch.linspace(0.1, 0.3, info.batch * info.num_heads).view(info.batch, -1)

    policy.gives_sample_scales = True  # type: ignore[attr-defined]
    return policy


@torch.no_grad()
def eager(name: str, denoiser: Any, steps: int = 3) -> list[Tensor]:
    return [denoiser(**call_at(name, SIZE, step), return_dict=False)[0] for step in range(steps)]


MODELS = [
    *(("sd3", each) for each in OPTIONS),
    ("flux", "TACA"),
    pytest.param("ldm", "TargetEntropy", marks=pytest.mark.slow),
    pytest.param("mochi", "TargetEntropy", marks=pytest.mark.slow),  # one call for each sample
]


@pytest.mark.parametrize("name, options", MODELS)
def test_a_denoiser_is_one_graph_with_the_results_of_the_eager_one(name, options):
    denoiser = CASES[name].make()
    plain = eager(name, denoiser)
    with apply(denoiser, **OPTIONS[options]()):
        wanted = eager(name, denoiser)
    with apply(denoiser, **OPTIONS[options]()):
        count, found = graphs(name, denoiser, repeated=False, sizes=[SIZE] * 3)
    assert count == 1
    for ours, other in zip(found, wanted, strict=True):
        assert torch.equal(ours, other)
    assert not torch.allclose(found[2], plain[2], atol=1e-3)


def test_repeated_blocks_share_their_graphs():
    denoiser = CASES["flux"].make()
    plain, _ = graphs("flux", denoiser, repeated=True, sizes=[SIZE] * 3)
    with apply(denoiser, Turns()):
        routed, found = graphs("flux", denoiser, repeated=True, sizes=[SIZE] * 3)
    with apply(denoiser, Turns()):
        wanted = eager("flux", denoiser)
    assert routed == plain and all(map(torch.equal, found, wanted))


@pytest.mark.slow
def test_other_sizes_make_no_more_graphs_than_without_routing():
    sizes = [(16, 16), (24, 16), (32, 24)]
    denoiser = CASES["flux"].make()
    plain, _ = graphs("flux", denoiser, repeated=False, sizes=sizes)
    with apply(denoiser, TACA(2.0, from_timestep=None)):
        routed, _ = graphs("flux", denoiser, repeated=False, sizes=sizes)
    assert routed <= plain


def test_records_are_those_of_the_eager_model():
    denoiser = CASES["sd3"].make()
    tables, maps = [], []
    for compiled in (False, True):
        entropies, of_layers = EntropyRecorder(), LayerMapRecorder((2,), "image")
        with apply(denoiser, record=[entropies, of_layers]) as handle:
            if compiled:
                assert graphs("sd3", denoiser, repeated=False, sizes=[SIZE] * 2)[0] == 1
            else:
                eager("sd3", denoiser, 2)
        assert len(entropies) == len(handle.layers) * 2
        tables.append(entropies.to_dataframe())
        maps.append(of_layers.maps())
    assert tables[0].equals(tables[1])
    assert all(torch.equal(maps[1][layer], expected) for layer, expected in maps[0].items())


@pytest.mark.parametrize(
    "options",
    [
        {"scale": Regions({2: (0.0, 0.0, 0.5, 1.0)}, outside=-5.0), "layers": "cross"},
        pytest.param({"scale": OfBranch(Constant(0.5), "uncond")}, marks=pytest.mark.slow),
    ],
    ids=["Regions", "OfBranch"],
)
def test_the_branches_of_a_pipeline(options):
    pipe = make_pipe("sd1")
    with apply(pipe, **options):
        wanted = sample(pipe)
        pipe.unet.compile(backend="eager", fullgraph=True)
        try:
            assert torch.equal(sample(pipe), wanted)
        finally:
            pipe.unet._compiled_call_impl = None
    assert not torch.allclose(sample(pipe), wanted, atol=1e-3)


def gradient(name: str, denoiser: Any, backend: str | None, policy: Any) -> tuple[Tensor, ...]:
    call = CASES[name].call(*SIZE)
    leaf = call["hidden_states"].clone().requires_grad_()
    if backend is not None:
        denoiser.compile(backend=backend, fullgraph=True)
    try:
        with apply(denoiser, policy):
            denoiser(**{**call, "hidden_states": leaf}, return_dict=False)[0].square().sum().backward()
    finally:
        denoiser._compiled_call_impl = None
    weights = [p.grad for _, p in sorted(denoiser.named_parameters()) if p.grad is not None]
    denoiser.zero_grad()
    return leaf.grad, *weights


def test_gradients_are_those_of_the_eager_model():
    denoiser = CASES["sd3"].make()
    policy = TACA(2.0, from_timestep=None)
    wanted, found = (gradient("sd3", denoiser, backend, policy) for backend in (None, "aot_eager"))
    assert wanted[0].any() and len(wanted) > 10
    for ours, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


def test_what_a_graph_cannot_differentiate_is_refused():
    denoiser, call = CASES["sd3"].make(), CASES["sd3"].call(*SIZE)
    denoiser.compile(backend="aot_eager", fullgraph=True)
    with apply(denoiser, TACA(2.0, from_timestep=None)):
        first = denoiser(**call, return_dict=False)[0]
        denoiser(**call, return_dict=False)
        with pytest.raises(RuntimeError, match="the denoiser was called again before the backward pass"):
            first.sum().backward()

    def policy(info: Any) -> KeyGroups:
        return KeyGroups(key_scale=[((0, 2), torch.tensor(1.5, requires_grad=True))])

    policy.gives_key_groups = True  # type: ignore[attr-defined]
    with (
        apply(denoiser, policy),
        pytest.raises(ValueError, match="a tensor with a gradient, which torch"),
    ):
        eager("sd3", denoiser, 1)
    denoiser._compiled_call_impl = None


def test_autocast():
    denoiser = CASES["sd3"].make()
    with apply(denoiser, TACA(2.0, from_timestep=None)), torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = eager("sd3", denoiser, 1)[0]
        denoiser.compile(backend="aot_eager", fullgraph=True)
        found = eager("sd3", denoiser, 1)[0]
        denoiser._compiled_call_impl = None
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


def test_errors_are_those_of_the_eager_model():
    denoiser = CASES["sd3"].make()

    def policy(info: Any) -> KeyGroups:
        return KeyGroups(key_bias=[((0, info.seqlen_k + 1), 1.0)])

    with apply(denoiser, policy):
        with pytest.raises(ValueError, match="key_bias: expected 0 <= start < stop"):
            eager("sd3", denoiser)
        with pytest.raises(Unroutable, match="gives_key_groups = True"):
            graphs("sd3", denoiser, repeated=False)
    policy.gives_key_groups = True  # type: ignore[attr-defined]
    with apply(denoiser, policy), pytest.raises(ValueError, match="key_bias: expected 0 <= start < stop"):
        graphs("sd3", denoiser, repeated=False)


@pytest.mark.parametrize("recorded", [False, True])
def test_the_operator(recorded):
    denoiser = CASES["sd3"].make()
    recorder = EntropyRecorder()
    with apply(denoiser, TACA(2.0, from_timestep=None), record=recorder if recorded else None) as handle:
        eager("sd3", denoiser, 1)
        q, k, v = (torch.randn(1, 24 + TEXT, 2, 16).transpose(1, 2).requires_grad_(not recorded) for _ in range(3))
        number = torch.tensor(0)
        arguments = (q, k, v, None, number, handle._number, -1, 0, 0, 0, None, 0.0, False, None, False)
        torch.library.opcheck(routed_attention, arguments)


def test_layers_that_are_recorded_with_gradients_stay_outside():
    denoiser, recorder = CASES["sd3"].make(), EntropyRecorder()
    with apply(denoiser, record=recorder) as handle:
        assert handle._has_operator(next(iter(handle.modules.values()))) is False
        torch.compile(denoiser, backend="eager")(**CASES["sd3"].call(*SIZE), return_dict=False)[0].sum().backward()
    assert isinstance(handle, Handle) and len(recorder) == len(handle.layers)
