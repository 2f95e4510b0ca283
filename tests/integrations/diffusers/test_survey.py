"""The survey of a model's layers, made without running it, against the calls when it runs."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from entropy_attn.integrations.diffusers import apply
from entropy_attn.integrations.diffusers.survey import refusals, survey
from entropy_attn.integrations.diffusers.target import train_size
from entropy_attn.pipelines.outline import outline_pipeline
from entropy_attn.scale import Constant, DyPE, Fixed, LogN, OfBranch, Schedule
from tests.integrations.diffusers.test_models import denoiser_of, run
from tests.support.tiny_denoisers import CASES
from tests.support.tiny_models import Spy, make_pipe
from tests.support.tiny_pipelines import PIPELINES


@pytest.mark.parametrize("name", CASES)
def test_the_survey_agrees_with_the_run(name: str):
    case, size = CASES[name], CASES[name].sizes[1]
    spy = Spy()
    with apply(denoiser_of(name), scale=spy, layers="all", train_size=case.train_size):
        run(name, size)
    infos = {info.layer: info for info in spy.calls}
    text = max((layer.text for layer in case.layers(*size)), default=0)
    with torch.device("meta"):
        empty = getattr(diffusers, case.row)(**case.config)
    reports = survey(
        empty, size, scale=Fixed(0.3), layers="all", train_size=case.train_size, frames=case.frames, text_tokens=text
    )
    assert {report.layer for report in reports if report.kind} == {
        layer for layer in infos if not layer.endswith(".image")
    }
    for report in reports:
        if report.kind is None:
            assert report.refused
            continue
        info = infos[report.layer]
        said = (report.kind, report.seqlen_q, report.seqlen_k, report.train_tokens, report.text_tokens)
        assert said == (info.kind, info.seqlen_q, info.seqlen_k, info.train_tokens, info.text_tokens), report.layer
        assert (report.heads, report.head_dim, report.scale) == (info.num_heads, info.head_dim, 0.3)
        assert (report.impl, report.refused) == ("sdpa", None)


def test_a_pipeline_is_surveyed_in_pixels():
    reports = survey(make_pipe(), (48, 64), scale=LogN())
    first = reports[0]
    assert (first.seqlen_k, first.train_tokens) == (24 * 32, 256)
    assert first.scale == pytest.approx(LogN(train_tokens=256)(_info(first)))
    assert {report.scale is None for report in reports if report.kind == "cross"} == {True}
    with pytest.raises(ValueError, match="multiples of 2 pixels"):
        survey(make_pipe(), (47, 64), scale=None)
    flux = survey(PIPELINES["flux"].make(), (96, 64), scale=None)
    assert {(report.seqlen_k, report.train_tokens, report.text) for report in flux} == {(24 + 512, 4096, "first")}


def test_policies_of_time_and_branches_are_asked_as_in_a_first_step():
    pipe = make_pipe()
    for policy, served in (
        (Schedule(Constant(0.5), (None, 1.0)), True),
        (Schedule(Constant(0.5), (0.5, 0.0)), False),
        (Schedule(Constant(0.5), (0.0, 0.5), "progress"), True),
        (DyPE(train_tokens=64), True),
        (OfBranch(Constant(0.5), "cond"), True),
        (OfBranch(Constant(0.5), "uncond"), False),
    ):
        reports = [report for report in survey(pipe, (32, 32), scale=policy) if report.kind == "self"]
        assert reports and not any(report.refused for report in reports)
        assert {report.scale is not None for report in reports} == {served}, policy


def _info(report):
    from entropy_attn.scale import CallInfo

    return CallInfo(
        report.layer, report.kind, report.seqlen_q, report.seqlen_k, report.heads, report.head_dim, report.train_tokens
    )


def test_refusals_are_collected():
    pipe = make_pipe()
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(AttnProcessor())
    found = dict(refusals(survey(pipe, (32, 32), scale=None)))
    assert list(found.values()) == [["mid_block.attentions.0.transformer_blocks.0.attn1"]]
    assert "AttnProcessor, makes no" in next(iter(found))
    sana = dict(refusals(survey(PIPELINES["sana"].make(), (256, 256), scale=None)))
    assert all("linear" in reason for reason in sana) and len(next(iter(sana.values()))) == 2
    everything = survey(make_pipe(), (32, 32), scale=LogN(), layers="mid_block")
    assert any("train_tokens" in (report.refused or "") for report in everything)


@pytest.mark.parametrize("name", sorted(set(PIPELINES) - {"flux2"}))  # its stand-in for an autoencoder has no files
def test_an_outline_agrees_with_the_pipeline(name: str, tmp_path):
    case = PIPELINES[name]
    pipe = case.make()
    pipe.save_pretrained(tmp_path)
    outline = outline_pipeline(str(tmp_path))
    assert type(outline) is type(pipe)
    assert {parameter.device.type for parameter in getattr(outline, case.component).parameters()} == {"meta"}
    size = train_size(pipe)
    assert train_size(outline) == size
    assert survey(outline, size, scale=None) == survey(pipe, size, scale=None)
