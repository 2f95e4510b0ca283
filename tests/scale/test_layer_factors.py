"""Factors by layer and token count: by hand, from a file, and on the command line."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle

import pytest
import torch

from entropy_attn.scale import CallInfo, LayerFactors, Layers, Steps
from entropy_attn.scale.parsing import parse_scale

INFO = CallInfo(layer="a", kind="self", seqlen_q=64, seqlen_k=64, num_heads=2, head_dim=64)
FACTORS = {"a": {64: 1.5, 256: [1.0, 2.0]}, "b": {16: 0.5}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "hold-entropy.json"
    path.write_text(json.dumps({"about": {}, "factors": FACTORS, "hold": {}}))
    return path


def test_by_hand():
    policy = LayerFactors(FACTORS)
    assert policy(INFO) == pytest.approx(1.5 / 8)
    scale = policy(dataclasses.replace(INFO, seqlen_k=256))
    assert scale.dtype == torch.float32 and scale.tolist() == pytest.approx([1 / 8, 2 / 8])
    assert policy(dataclasses.replace(INFO, layer="b", seqlen_k=16)) == pytest.approx(0.5 / 8)


def test_text_is_not_counted_in_joint_attention():
    joint = dataclasses.replace(INFO, kind="joint", seqlen_k=64 + 77, text_tokens=77)
    assert LayerFactors(FACTORS)(joint) == pytest.approx(1.5 / 8)


def test_a_file_is_as_good_as_a_mapping(file):
    policy = LayerFactors(FACTORS)
    for other in (LayerFactors(file), LayerFactors(str(file)), LayerFactors(policy.factors), copy.deepcopy(policy),
                  pickle.loads(pickle.dumps(policy)), dataclasses.replace(policy)):  # fmt: skip
        assert other == policy and hash(other) == hash(policy) and repr(other) == repr(policy)
        assert other(INFO) == policy(INFO)
    changed = LayerFactors({**FACTORS, "b": {16: 0.6}})
    assert changed != policy and repr(changed) != repr(policy)  # a profile that is resumed compares these


def test_what_has_no_factor_is_refused_by_name():
    policy = LayerFactors(FACTORS)
    with pytest.raises(ValueError, match=r"layer: expected one of the 2 with factors, such as 'a', got 'c'; missing="):
        policy(dataclasses.replace(INFO, layer="c"))
    assert LayerFactors(FACTORS, missing="leave")(dataclasses.replace(INFO, layer="c")) is None
    with pytest.raises(ValueError, match=r"layer 'a': expected 64, 256 image tokens.*got 100: profile this size too"):
        LayerFactors(FACTORS, missing="leave")(dataclasses.replace(INFO, seqlen_k=100))
    with pytest.raises(ValueError, match=r"layer 'a': expected 2 heads, as factors, got 3"):
        policy(dataclasses.replace(INFO, seqlen_k=256, num_heads=3))


def test_the_command_line_takes_the_path(file):
    assert parse_scale(str(file)) == parse_scale(f"factors:factors={file}") == LayerFactors(file)
    windowed = parse_scale(f"{file}:missing=leave:steps=0..5:layers=up_blocks")
    inner = LayerFactors(file, missing="leave")
    assert windowed == Layers({"up_blocks": Steps(inner, 0, 5)})
    with pytest.raises(ValueError, match=r"cannot read '.*absent\.json': No such file"):
        parse_scale(str(file.with_name("absent.json")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"expected JSON in .*hold-entropy\.json"),
        ("[]", r"expected an object with the key 'factors' in .*got none"),
        ('{"factors": {}}', "at least one layer with a factor"),
        ('{"factors": {"a": {}}}', "at least one layer with a factor"),
        ('{"factors": {"a": {"x": 1}}}', "numbers of tokens of layer 'a', whole and from 1, got 'x'"),
        ('{"factors": {"a": {"64": 0}}}', "factors: expected a finite number > 0, got 0"),
        ('{"factors": {"a": {"64": NaN}}}', "factors: expected a finite number > 0, got nan"),
        ('{"factors": {"a": {"64": []}}}', r"one for each head of layer 'a', got \[\]"),
    ],
)
def test_a_file_that_cannot_be_used(file, text, message):
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        LayerFactors(file)


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"factors: expected a \.json file .*got '.*factors\.csv'"):
        LayerFactors(tmp_path / "factors.csv")


def test_the_factor_multiplies_the_default_scale():
    info = dataclasses.replace(INFO, head_dim=40)
    assert LayerFactors({"a": {64: 1.25}})(info) == pytest.approx(1.25 / math.sqrt(40))


def test_a_compiled_denoiser_gets_the_same_factors():
    pytest.importorskip("diffusers")
    import entropy_attn as ea
    from tests.support.tiny_denoisers import CASES

    case, recorder = CASES["sd3"], ea.EntropyRecorder(branches=("all",))
    denoiser, call = case.make(), case.call(8, 8)
    with torch.no_grad():
        with ea.apply(denoiser, record=recorder, train_size=16):
            plain = denoiser(**call)[0]
        table = recorder.to_dataframe()
        joint = table[table["kind"] == "joint"]
        heads = joint.groupby("layer")["head"].nunique()
        factors = {name: {int(count): [2.0 + h for h in range(heads[name])]} for name, count in
                   joint.groupby("layer")["seqlen_q"].first().items()}  # fmt: skip
        with ea.apply(denoiser, scale=LayerFactors(factors, missing="leave"), train_size=16):
            eager = denoiser(**call)[0]
            compiled = torch.compile(denoiser, backend="eager")(**call)[0]
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)
    assert (eager - plain).abs().max() > 1e-3
