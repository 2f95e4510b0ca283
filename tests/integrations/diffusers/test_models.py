"""Every row of the table of denoisers, on a tiny model: same output, right counts and entropies, no traces left."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from entropy_attn.errors import Unsupported
from entropy_attn.integrations.diffusers import apply
from entropy_attn.integrations.diffusers.models import MODELS
from entropy_attn.recorders.base import Recorder
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.scale import Fixed, LogN
from tests.support.footprint import footprint
from tests.support.tiny_case import text_mask
from tests.support.tiny_denoisers import CASES, Case, Layer
from tests.support.tiny_models import Spy

pytestmark = pytest.mark.parametrize("name", CASES)


@functools.cache
def denoiser_of(name: str) -> Any:
    return CASES[name].make()


@torch.no_grad()
def run(name: str, size: tuple[int, int]) -> torch.Tensor:
    output = denoiser_of(name)(**CASES[name].call(*size), return_dict=False)[0]
    return torch.cat([each.flatten() for each in output]) if isinstance(output, list) else output


class Seen(TorchFunctionMode):
    """Keeps the arguments of torch's attention calls."""

    def __init__(self):
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
            self.calls.append(dict(zip(names, args, strict=False)) | (kwargs or {}))
        return func(*args, **(kwargs or {}))

    def of(self, name: str) -> list[dict[str, Any]]:
        """The calls of attention layers."""
        return self.calls[CASES[name].outside :]


@functools.cache
def plain(name: str, size: tuple[int, int]) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """The output and the attention calls of the model without routing."""
    with Seen() as seen:
        output = run(name, size)
    return output, seen.of(name)


def expected_layer(case: Case, size: tuple[int, int], layer: str) -> Layer:
    return next(each for each in case.layers(*size) if re.search(each.pattern, layer))


def routed(name: str, **options: Any) -> Any:
    return apply(denoiser_of(name), train_size=CASES[name].train_size, **options)


def test_the_output_is_the_same_and_masks_are_seen(name: str):
    case = CASES[name]
    before = footprint(denoiser_of(name))
    for size in case.sizes:
        output, calls = plain(name, size)
        for scale in (Fixed(), None):
            with routed(name, scale=scale, layers="all"), Seen() as seen:
                assert torch.equal(run(name, size), output)
            assert len(seen.of(name)) == len(calls)
            for routed_call, call in zip(seen.of(name), calls, strict=True):
                for tensor in ("query", "key", "value"):
                    assert torch.equal(routed_call[tensor], call[tensor])
                routed_mask, mask = routed_call.get("attn_mask"), call.get("attn_mask")
                assert routed_mask is mask or torch.equal(routed_mask, mask.to(routed_mask.dtype))
                if scale is None:
                    assert routed_call["scale"] == call.get("scale")
    assert any(call.get("attn_mask") is not None for call in plain(name, case.sizes[0])[1]) == case.masked
    assert footprint(denoiser_of(name)) == before
    assert torch.equal(run(name, case.sizes[0]), plain(name, case.sizes[0])[0])


def test_policies_see_what_each_layer_attends_to(name: str):
    case = CASES[name]
    for size in case.sizes:
        spy = Spy()
        with routed(name, scale=spy, layers="all") as handle:
            run(name, size)
        assert {info.layer.removesuffix(".image") for info in spy.calls} == set(handle.layers)
        calls = plain(name, size)[1]
        assert len(spy.calls) == len(calls)
        matched = set()
        for info, call in zip(spy.calls, calls, strict=True):
            layer = expected_layer(case, size, info.layer)
            matched.add(layer)
            heads, queries, head_dim = call["query"].shape[-3:]
            assert (info.num_heads, info.seqlen_q, info.head_dim) == (heads, queries, head_dim)
            keys = layer.prompt + layer.text if layer.kind == "cross" else layer.image + layer.text
            assert (info.kind, info.seqlen_k, info.text_tokens) == (layer.kind, keys, layer.text), info.layer
            assert call["key"].shape[-2] == keys
            assert queries == layer.image + layer.text_queries
            assert info.train_tokens == layer.train, info.layer
        assert matched == set(case.layers(*size))


def test_log_n_is_for_the_layers_with_image_tokens(name: str):
    case, size = CASES[name], CASES[name].sizes[1]
    if not any(layer.train for layer in case.layers(*size)):
        with pytest.raises(ValueError, match=r"layers='self' with .*: none of its routed layers"):
            routed(name)
        return
    expected = plain(name, size)[0]  # without routing
    for count_text in (False, True):
        policy = LogN(count_text_tokens=count_text)
        with routed(name, scale=policy), Seen() as seen:
            assert not torch.equal(run(name, size), expected)
        spy = Spy()
        with routed(name, scale=spy, layers="all"):
            run(name, size)
        for info, routed_call, call in zip(spy.calls, seen.of(name), plain(name, size)[1], strict=True):
            layer = expected_layer(case, size, info.layer)
            if layer.train is None:
                assert routed_call["scale"] == call.get("scale")
                continue
            extra = layer.text if count_text and layer.kind == "joint" else 0
            n, t = (torch.tensor(float(count + extra)) for count in (layer.image, layer.train))
            expected_scale = float((n.log() / t.log()).sqrt() / info.head_dim**0.5)
            assert routed_call["scale"] == pytest.approx(expected_scale, rel=1e-5)


def entropies(call: dict[str, Any], scale: float) -> torch.Tensor:
    """Entropies (batch, heads, queries), from the matrix of probabilities."""
    query, key = call["query"].double(), call["key"].double()
    logits = query @ key.mT * scale
    mask = call.get("attn_mask")
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return torch.special.entr(logits.softmax(-1)).sum(-1)


def image_rows(layer: Layer, queries: int) -> slice:
    if layer.order not in ("first", "last"):
        return slice(None)
    if layer.order == "last":
        return slice(0, queries - layer.text_queries)
    return slice(layer.text_queries, queries)


def of_image(layer: Layer, found: torch.Tensor, dim: int) -> torch.Tensor:
    """The rows of the image along `dim`, which is negative; in ragged batches they follow the text of each sample."""
    if layer.order != "ragged":
        rows = image_rows(layer, found.shape[dim])
        return found.narrow(dim, rows.start or 0, len(range(*rows.indices(found.shape[dim]))))
    starts = [int(length) for length in text_mask().sum(1)]
    assert len(set(starts)) > 1
    return torch.stack([each.narrow(dim, start, layer.image) for each, start in zip(found, starts, strict=True)])


class Kept(Recorder):
    """Keeps everything that it receives."""

    def __init__(self, request: Any = "entropy"):
        super().__init__(None)
        self.request, self.kept = request, []

    def wants(self, info, latent_size):
        return self.request(info) if callable(self.request) else self.request

    def record(self, info, scale, measured, branches, latent_size):
        self.kept.append((info, scale, measured, latent_size))


def test_recorded_entropies_are_those_of_the_probabilities(name: str):
    case, size, kept, recorder = CASES[name], CASES[name].sizes[1], Kept(), EntropyRecorder()
    with routed(name, scale=None, record=[kept, recorder]):
        run(name, size)
    calls = plain(name, size)[1]
    assert len(kept.kept) == len(recorder) == len(calls)
    for (info, scale, measured, latent_size), call in zip(kept.kept, calls, strict=True):
        layer = expected_layer(case, size, info.layer)
        expected = entropies(call, call.get("scale") or info.head_dim**-0.5)
        expected = of_image(layer, expected, -1)
        assert latent_size == size
        assert scale == pytest.approx(call.get("scale") or info.head_dim**-0.5)
        torch.testing.assert_close(measured.double(), expected, rtol=1e-3, atol=1e-4)
    rows = recorder.to_dataframe().drop_duplicates(["layer"])
    for row in rows.itertuples():
        layer = expected_layer(case, size, row.layer)
        assert row.seqlen_q == layer.image + (0 if layer.order in ("first", "last", "ragged") else layer.text_queries)


def test_maps_are_of_text_positions_and_image_rows(name: str):
    case, size = CASES[name], CASES[name].sizes[0]
    if not any(layer.text for layer in case.layers(*size)):
        return
    kept = Kept(lambda info: (1, info.text_tokens - 1) if info.text_tokens else None)
    with routed(name, scale=None, record=kept):
        run(name, size)
    calls = iter(plain(name, size)[1])
    for info, _, measured, _ in kept.kept:
        layer = expected_layer(case, size, info.layer)
        call = next(call for call in calls if call["key"].shape[-2] == info.seqlen_k or not layer.text)
        mask = call.get("attn_mask")
        logits = call["query"].double() @ call["key"].double().mT * (call.get("scale") or info.head_dim**-0.5)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        first = layer.image if layer.order == "last" else 0
        expected = of_image(layer, logits.softmax(-1).mean(-3), -2)
        expected = expected[..., first + 1 : first + layer.text - 1]
        if layer.order == "ragged" and mask is not None:  # behind a shorter text its image begins
            own = mask.expand(len(expected), 1, 1, -1).flatten(1).sum(1, keepdim=True) - layer.image
            behind = torch.arange(1, layer.text - 1) >= own  # [batch, positions]
            assert behind.any() and not behind.all()
            expected = expected.masked_fill(behind[:, None], torch.nan)
        torch.testing.assert_close(measured.double(), expected, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_the_scale_can_be_for_the_image_only(name: str):
    """With rows="image" the queries of the text keep the model's default scale."""
    case, size = CASES[name], CASES[name].sizes[0]
    if not any(layer.kind == "joint" for layer in case.layers(*size)):
        return
    if any(layer.order == "ragged" for layer in case.layers(*size)):
        with routed(name, scale=Fixed(), rows="image"), pytest.raises(Unsupported, match=r"rows='image'.*begin at"):
            run(name, size)
        return
    output, calls = plain(name, size)
    with routed(name, scale=Fixed(), rows="image", record=EntropyRecorder()):
        torch.testing.assert_close(run(name, size), output, rtol=1e-4, atol=1e-4)
    spy = Spy()
    with routed(name, scale=spy, layers="all"):
        run(name, size)
    first = next(n for n, info in enumerate(spy.calls) if info.kind == "joint")
    info, call = spy.calls[first], calls[first]
    layer = expected_layer(case, size, info.layer)
    with routed(name, scale=lambda each: 0.05 if each == info else None, rows="image"), Seen() as seen:
        run(name, size)
    parts = seen.of(name)[first : first + (2 if layer.text_queries else 1)]
    rows = image_rows(layer, info.seqlen_q)
    assert len(seen.of(name)) == len(calls) + (len(parts) - 1) * spy.calls.count(info)
    assert parts[0]["scale"] == 0.05 and torch.equal(parts[0]["query"], call["query"][..., rows, :])
    if layer.text_queries:
        text = slice(layer.image, None) if layer.order == "last" else slice(0, layer.text)
        assert parts[1]["scale"] == call.get("scale") and torch.equal(parts[1]["query"], call["query"][..., text, :])


def test_gradients_flow(name: str):
    case, denoiser, size = CASES[name], denoiser_of(name), CASES[name].sizes[0]

    def gradient() -> torch.Tensor:
        denoiser.zero_grad()
        output = denoiser(**case.call(*size), return_dict=False)[0]
        output = torch.cat([each.flatten() for each in output]) if isinstance(output, list) else output
        output.square().sum().backward()
        found = torch.cat([p.grad.flatten() for n, p in denoiser.named_parameters() if "to_q" in n or "to_k" in n])
        denoiser.zero_grad()
        return found

    expected = gradient()
    assert expected.abs().max() > 0
    for record in (None, EntropyRecorder()):
        with routed(name, scale=Fixed(), layers="all", record=record):
            torch.testing.assert_close(gradient(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_every_row_is_tested(name: str):
    assert {case.row for case in CASES.values()} == {model.denoiser for model in MODELS}
