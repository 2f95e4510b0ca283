"""The recorder of entropies, against entropies of materialized softmax probabilities."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch.utils._python_dispatch import TorchDispatchMode

from entropy_attn.integrations.diffusers import apply
from entropy_attn.recorders.entropy import COLUMNS, EntropyRecorder
from entropy_attn.scale import CallInfo, Fixed, LogN
from tests.support.tiny_models import TEXT_TOKENS, denoise, make_pipe, sample


class Oracle(AttnProcessor2_0):
    """Computes the entropies of a layer from its probabilities, in float64, before it runs as usual."""

    def __init__(self, scale):
        super().__init__()
        self.scale, self.entropies = scale, []

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        heads = [
            to(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2).double()
            for to, tokens in ((attn.to_q, hidden_states), (attn.to_k, context))
        ]
        log_p = (heads[0] @ heads[1].mT * self.scale).log_softmax(-1)
        self.entropies.append(-(log_p.exp() * log_p).sum(-1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)


def statistics(entropy: torch.Tensor) -> list[float]:
    return [entropy.mean(), entropy.std(correction=0), entropy.amin(), entropy.amax()]


def test_recorded_entropies_equal_those_of_the_probabilities():
    pipe, recorder, scale = make_pipe(), EntropyRecorder(per_query=True), 0.4
    oracles = {}
    for name, module in pipe.unet.named_modules():
        if isinstance(module, Attention):
            module.set_processor(oracles.setdefault(name, Oracle(scale)))
    with apply(pipe, scale=Fixed(scale), layers="all", record=recorder):
        sample(pipe, 32, 48, steps=2, batch=2)
    rows = recorder.to_dataframe().set_index(["layer", "step", "branch", "head"])
    assert len(rows) == sum(2 * 2 * oracle.entropies[0].shape[1] for oracle in oracles.values())
    for (layer, step, branch, head), row in rows.iterrows():
        half = oracles[layer].entropies[step].chunk(2)[["uncond", "cond"].index(branch)]
        expected = torch.stack(statistics(half[:, head]))
        actual = torch.tensor([row["mean"], row["std"], row["min"], row["max"]])
        torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-4)
        assert row["scale"] == scale
        assert row["seqlen_q"] == half.shape[2]
        assert row["seqlen_k"] == (TEXT_TOKENS if row["kind"] == "cross" else half.shape[2])
    for branch in (None, "cond", "uncond"):
        for kind, suffix in (("self", "attn1"), ("cross", "attn2")):
            maps = recorder.spatial(branch=branch, kind=kind)
            assert set(maps) == {layer for layer in oracles if layer.endswith(suffix)}
            for layer, image in maps.items():
                halves = [entropy.chunk(2)[branch != "uncond"].mean(1) for entropy in oracles[layer].entropies]
                grid = (16, 24) if halves[0].shape[1] == 16 * 24 else (8, 12)
                expected = torch.stack(halves).mean(0).reshape(2, *grid)
                torch.testing.assert_close(torch.from_numpy(image), expected.float(), rtol=1e-4, atol=1e-4)
    first = recorder.spatial(step=1)["mid_block.attentions.0.transformer_blocks.0.attn1"]
    last = oracles["mid_block.attentions.0.transformer_blocks.0.attn1"].entropies[1].chunk(2)[1].mean(1)
    torch.testing.assert_close(torch.from_numpy(first), last.reshape(2, 8, 12).float(), rtol=1e-4, atol=1e-4)


def test_table_of_a_pipeline(pipe):
    recorder = EntropyRecorder()
    with apply(pipe, scale=LogN(), record=recorder) as handle:
        sample(pipe, 48, 48, steps=2)
    table = recorder.to_dataframe()
    assert tuple(table.columns) == COLUMNS
    assert len(recorder) == 2 * len(handle.layers)
    assert set(table["layer"]) == set(handle.layers)
    assert set(table["step"]) == {0, 1} and set(table["branch"]) == {"uncond", "cond"}
    limits = np.log(table["seqlen_k"]) + 1e-4
    assert (table["min"] >= -1e-4).all() and (table["max"] <= limits).all()
    assert (table["min"] <= table["mean"]).all() and (table["mean"] <= table["max"]).all()
    modules = dict(pipe.unet.named_modules())
    for layer, rows in table.groupby("layer"):
        assert sorted(rows["head"].unique()) == list(range(modules[layer].heads))
        dim = modules[layer].inner_dim // modules[layer].heads
        tokens, train_tokens = int(rows["seqlen_k"].iloc[0]), 256 if rows["seqlen_q"].iloc[0] == 576 else 64
        ratio = math.sqrt(math.log(tokens, train_tokens)) if layer.endswith("attn1") else 1.0
        assert rows["scale"].to_numpy() == pytest.approx(ratio / math.sqrt(dim))


def test_branches_follow_the_guidance():
    pipe, recorder = make_pipe(), EntropyRecorder()
    with apply(pipe, record=recorder):
        sample(pipe, guidance_scale=1.0)
        assert set(recorder.to_dataframe()["branch"]) == {"all"}
        recorder.reset()
        sample(pipe, guidance_scale=2.0)
        assert set(recorder.to_dataframe()["branch"]) == {"uncond", "cond"}


def test_branches_of_a_plain_denoiser(unet):
    recorder = EntropyRecorder()
    with apply(unet, record=recorder):
        denoise(unet, batch=2)
    assert set(recorder.to_dataframe()["branch"]) == {"all"}
    recorder = EntropyRecorder(branches=("cond", "uncond", "perturbed"))
    with apply(unet, record=recorder):
        denoise(unet, batch=3)
        assert set(recorder.to_dataframe()["branch"]) == {"cond", "uncond", "perturbed"}
        with pytest.raises(ValueError, match=r"batch of 2.*3 equal parts.*branches="):
            denoise(unet, batch=2)


def test_other_kinds_of_guidance_need_stated_branches():
    from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPAGPipeline

    parts = make_pipe().components
    for pipe in (
        StableDiffusionPAGPipeline(**parts, requires_safety_checker=False),
        StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False),
    ):
        with pytest.raises(ValueError, match=rf"{type(pipe).__name__}.*EntropyRecorder\(branches="):
            apply(pipe, record=EntropyRecorder())
        apply(pipe, record=EntropyRecorder(branches=("all",))).remove()
        apply(pipe).remove()


def test_recording_does_not_change_the_image(pipe):
    with apply(pipe, scale=Fixed(0.3)):
        expected = sample(pipe)
    with apply(pipe, scale=Fixed(0.3), record=EntropyRecorder()):
        torch.testing.assert_close(sample(pipe), expected, rtol=1e-4, atol=1e-4)


def test_per_head_scales_are_recorded(unet):
    recorder = EntropyRecorder()
    with apply(unet, scale=lambda info: torch.linspace(0.1, 0.4, info.num_heads), record=recorder):
        denoise(unet)
    table = recorder.to_dataframe()
    routed = table[table["kind"] == "self"]
    assert routed["scale"].to_numpy() == pytest.approx(0.1 + 0.1 * routed["head"].to_numpy())
    cross = table[table["kind"] == "cross"]
    assert cross["scale"].nunique() == 2 and (cross["scale"] > 0.1).all()


@pytest.mark.parametrize("scale", [torch.tensor(0.1), torch.tensor([0.1, 0.2]), 0.1], ids=["0-d", "per head", "float"])
def test_recording_waits_for_nothing(scale):
    """No operation copies to the host or reads a value before the table is requested."""

    waiting = ("aten::_local_scalar_dense", "aten::_to_copy", "aten::nonzero", "aten::is_nonzero")

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.name() not in waiting
            return func(*args, **(kwargs or {}))

    info = CallInfo(layer="a", kind="self", seqlen_q=16, seqlen_k=16, num_heads=2, head_dim=8)
    recorder = EntropyRecorder(per_query=True)
    with Watch():
        recorder.record(info, scale, torch.rand(2, 2, 16), ("uncond", "cond"), (4, 4))
    assert len(recorder.to_dataframe()) == 4


def test_recording_does_not_keep_the_graph_alive(unet):
    recorder = EntropyRecorder(per_query=True)
    with apply(unet, record=recorder):
        denoise(unet)
    for record in recorder._records:
        assert not record.statistics.requires_grad and not record.per_query.requires_grad


def test_save(tmp_path, unet):
    recorder = EntropyRecorder()
    with apply(unet, record=recorder):
        denoise(unet)
    table = recorder.to_dataframe()
    assert recorder.save(tmp_path / "entropy.csv") == tmp_path / "entropy.csv"
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "entropy.csv"), table)
    recorder.save(str(tmp_path / "entropy.json"))
    pd.testing.assert_frame_equal(pd.DataFrame(json.loads((tmp_path / "entropy.json").read_text())), table)
    with pytest.raises(ValueError, match=r"\.csv or \.json, got .*entropy\.txt"):
        recorder.save(tmp_path / "entropy.txt")


def test_without_pandas(monkeypatch, tmp_path, unet):
    recorder = EntropyRecorder()
    with apply(unet, record=recorder):
        denoise(unet)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="needs pandas"):
        recorder.to_dataframe()
    recorder.save(tmp_path / "entropy.csv")


def test_reset_and_an_empty_recorder(unet):
    recorder = EntropyRecorder(per_query=True)
    assert len(recorder.to_dataframe()) == 0
    with apply(unet, record=recorder):
        denoise(unet)
        recorder.reset()
        assert len(recorder) == 0
        with pytest.raises(ValueError, match="no attention call was recorded"):
            recorder.spatial()


def test_spatial_of_odd_sizes(unet):
    recorder = EntropyRecorder(per_query=True)
    with apply(unet, record=recorder):
        denoise(unet, 13, 21, batch=3)
    assert {image.shape for image in recorder.spatial().values()} == {(3, 13, 21), (3, 7, 11)}


def test_spatial_refuses(unet):
    with pytest.raises(ValueError, match="per_query=True"):
        EntropyRecorder().spatial()
    recorder = EntropyRecorder(per_query=True, branches=("a", "b"))
    with apply(unet, record=recorder):
        denoise(unet, batch=2)
        with pytest.raises(ValueError, match=r"branch: .*\['a', 'b'\].*got None"):
            recorder.spatial()
        with pytest.raises(ValueError, match=r"branch: .*\['a', 'b'\].*got 'cond'"):
            recorder.spatial(branch="cond")
        with pytest.raises(ValueError, match="at step 7"):
            recorder.spatial(step=7)
        with pytest.raises(ValueError, match=r"kind: .*got 'other'"):
            recorder.spatial(kind="other")
        denoise(unet, 8, 8, batch=2)
        with pytest.raises(ValueError, match="several sizes"):
            recorder.spatial(branch="a")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"per_query": "yes"}, TypeError, "per_query: expected True or False, got 'yes'"),
        ({"branches": "cond"}, TypeError, "branches: .*'cond'"),
        ({"branches": (1, 2)}, TypeError, "branches: "),
        ({"branches": ()}, ValueError, "at least one"),
        ({"branches": ("a", "a")}, ValueError, "each once"),
    ],
)
def test_recorder_refuses(options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        EntropyRecorder(**options)
