"""Under diffusers' tensor parallelism each device has some of the heads: a recorder would take them for all."""

from __future__ import annotations

import pytest
from diffusers import ParallelConfig, TensorParallelConfig

import entropy_attn as ea
from entropy_attn.errors import Unroutable
from tests.support.tiny_models import sample

SPREAD = ParallelConfig(tensor_parallel_config=TensorParallelConfig(tp_degree=2))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"record": ea.EntropyRecorder()}, "EntropyRecorder"), ({"scale": ea.scale.TargetEntropy()}, "TargetEntropy")],
)
def test_recorders_are_refused_and_nothing_is_left(pipe, monkeypatch, options, named):
    monkeypatch.setattr(pipe.unet, "_parallel_config", SPREAD)
    forward = pipe.unet.forward
    with pytest.raises(Unroutable, match=rf"spread over devices \(tensor parallel\), so .*{named}"):
        ea.apply(pipe, **options)
    assert pipe.unet.forward == forward


def test_also_where_it_is_enabled_after_apply(pipe, monkeypatch):
    with ea.apply(pipe, record=ea.EntropyRecorder()):
        monkeypatch.setattr(pipe.unet, "_parallel_config", SPREAD)
        with pytest.raises(Unroutable, match="tensor parallel"):
            sample(pipe, steps=1)


def test_one_factor_is_served(pipe, monkeypatch):
    monkeypatch.setattr(pipe.unet, "_parallel_config", SPREAD)
    with ea.apply(pipe, scale=ea.scale.Constant(0.3)):
        sample(pipe, steps=1)


def test_a_mix_is_refused(pipe, monkeypatch):
    monkeypatch.setattr(pipe.unet, "_parallel_config", SPREAD)
    with pytest.raises(
        Unroutable, match=r"spread over devices \(tensor parallel\), and mix=SoftPAG counts all of them"
    ):
        ea.apply(pipe, mix=ea.mix.SoftPAG())
