"""What `ResponseRecorder` keeps, against logits that are written out."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch.utils._python_dispatch import TorchDispatchMode

import entropy_attn as ea
from entropy_attn.recorders.response import COLUMNS, ResponseRecorder
from entropy_attn.routing import router
from entropy_attn.scale import CallInfo, Fixed
from tests.support.tiny_denoisers import CASES
from tests.support.tiny_models import denoise, make_pipe, sample


class Oracle(AttnProcessor2_0):
    """Notes entropy, response and spread of the logits of a layer, in float64, before it runs as usual."""

    def __init__(self, scale):
        super().__init__()
        self.scale, self.found = scale, []

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = (
            to(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2).double()
            for to, tokens in ((attn.to_q, hidden_states), (attn.to_k, context))
        )
        logits = query @ key.mT * self.scale
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        mean = (p * logits).sum(-1, keepdim=True)
        response = (p * (logits - mean).square()).sum(-1)
        self.found.append(torch.stack([-(p * log_p).sum(-1), response, logits.std(-1, correction=0)]))
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)


def test_recorded_numbers_are_those_of_the_logits():
    pipe, scale = make_pipe(), 0.4
    recorder, entropies, oracles = ResponseRecorder(steps=[0, 2]), ea.EntropyRecorder(), {}
    for name, module in pipe.unet.named_modules():
        if isinstance(module, Attention):
            module.set_processor(oracles.setdefault(name, Oracle(scale)))
    with ea.apply(pipe, scale=Fixed(scale), layers="all", record=[entropies, recorder]):
        sample(pipe, 32, 48, steps=3, batch=2)
    table = recorder.to_dataframe()
    assert tuple(table.columns) == COLUMNS and set(table["step"]) == {0, 2} and set(table["kind"]) == {"self"}
    assert set(table["layer"]) == {name for name in oracles if name.endswith("attn1")}
    assert len(table) == sum(2 * 2 * oracles[name].found[0].shape[2] for name in set(table["layer"]))
    both = entropies.to_dataframe().set_index(["layer", "step", "branch", "head"])["mean"]
    for row in table.itertuples():
        half = oracles[row.layer].found[row.step].chunk(2, dim=1)[["uncond", "cond"].index(row.branch)]
        entropy, response, logit_std = half[:, :, row.head].mean(dim=(1, 2)).tolist()
        assert row.entropy == pytest.approx(entropy, abs=1e-4)
        assert row.entropy == pytest.approx(both[row.layer, row.step, row.branch, row.head], abs=1e-6)
        assert row.response == pytest.approx(response, rel=2e-3, abs=1e-4)
        assert row.logit_std == pytest.approx(logit_std, rel=1e-4)
        assert row.scale == scale and row.text_tokens == 0
        assert (row.seqlen_k, row.train_tokens) in {(16 * 24, 256), (8 * 12, 64)}


def test_the_image_does_not_change_and_a_policy_may_give_a_scale_for_each_head():
    pipe, recorder = make_pipe(), ResponseRecorder()
    policy = lambda info: torch.linspace(0.1, 0.4, info.num_heads)  # noqa: E731
    with ea.apply(pipe, scale=policy):
        expected = sample(pipe)
    with ea.apply(pipe, scale=policy, record=recorder):
        torch.testing.assert_close(sample(pipe), expected, rtol=1e-4, atol=1e-4)
    table = recorder.to_dataframe()
    assert table["scale"].to_numpy() == pytest.approx(0.1 + 0.1 * table["head"].to_numpy())


def test_nothing_more_is_computed_at_other_steps_or_for_other_recorders(monkeypatch):
    calls, measure = [], router.response_and_variance
    monkeypatch.setattr(router, "response_and_variance", lambda *a, **k: calls.append(1) or measure(*a, **k))
    pipe, recorder = make_pipe(), ResponseRecorder(steps=[1])
    with ea.apply(pipe, record=ea.EntropyRecorder()):
        sample(pipe, steps=2)
    assert not calls
    with ea.apply(pipe, record=[ea.EntropyRecorder(), recorder]):
        sample(pipe, steps=3)
    assert len(calls) == len(recorder) == sum("attn1" in name for name in set(recorder.to_columns()["layer"]))


def test_joint_attention_is_measured_for_the_image_and_counts_its_text():
    denoiser, recorder = CASES["sd3"].make(), ResponseRecorder(branches=("all",))
    with ea.apply(denoiser, record=recorder, train_size=16), torch.no_grad():
        denoiser(**CASES["sd3"].call(8, 8))
    table = recorder.to_dataframe()
    joint = table[table["kind"] == "joint"]
    assert len(joint) and (joint["seqlen_k"] - joint["text_tokens"] == joint["seqlen_q"]).all()
    assert (joint["text_tokens"] > 0).all() and (joint["train_tokens"] > 0).all()


def test_text_alone_and_cross_attention_are_left_out():
    recorder = ResponseRecorder(steps=range(1, 3))
    info = {"layer": "a", "seqlen_q": 16, "seqlen_k": 16, "num_heads": 2, "head_dim": 8}
    wanted = [
        recorder.wants(CallInfo(**{**info, "kind": "self", **more}), (4, 4))
        for more in ({"step": 1}, {"step": 0}, {"step": 1, "text_tokens": 16}, {"step": 1, "kind": "cross"})
    ]
    assert wanted == ["response", None, None, None]


def test_under_torch_compile():
    eager, compiled = ResponseRecorder(branches=("all",)), ResponseRecorder(branches=("all",))
    for recorder in (eager, compiled):
        denoiser = CASES["sd3"].make()
        with ea.apply(denoiser, record=recorder, train_size=16), torch.no_grad():
            run = torch.compile(denoiser, backend="eager") if recorder is compiled else denoiser
            run(**CASES["sd3"].call(8, 8))
    one, other = eager.to_dataframe(), compiled.to_dataframe()
    assert len(one) == len(other) > 0
    for column in ("entropy", "response", "logit_std"):
        assert other[column].tolist() == pytest.approx(one[column].tolist(), rel=1e-3, abs=1e-4)


def test_recording_waits_for_nothing_and_keeps_no_graph(unet):
    waiting = ("aten::_local_scalar_dense", "aten::_to_copy", "aten::nonzero", "aten::is_nonzero")

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.name() not in waiting
            return func(*args, **(kwargs or {}))

    info = CallInfo(layer="a", kind="self", seqlen_q=16, seqlen_k=16, num_heads=2, head_dim=8)
    recorder = ResponseRecorder()
    with Watch():
        recorder.record(info, torch.tensor([0.1, 0.2]), torch.rand(2, 2, 16, 3), ("uncond", "cond"), (4, 4))
    table = recorder.to_dataframe()
    assert len(table) == 4 and table["train_tokens"].isna().all()
    recorder.reset()
    with ea.apply(unet, record=recorder):
        denoise(unet)
    assert len(recorder) and not any(record.means.requires_grad for record in recorder._records)


def test_a_row_of_one_key_has_neither():
    recorder = ResponseRecorder()
    info = CallInfo(layer="a", kind="self", seqlen_q=1, seqlen_k=1, num_heads=1, head_dim=8)
    recorder.record(info, 0.3, torch.zeros(1, 1, 1, 3), ("all",), (1, 1))
    (row,) = recorder.to_dataframe().to_dict("records")
    assert row["response"] == row["logit_std"] == row["entropy"] == 0 and math.isclose(row["scale"], 0.3)
