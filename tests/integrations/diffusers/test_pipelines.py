"""A pipeline for every row of the table of denoisers: guidance, steps and training size."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
import torch

from entropy_attn.integrations.diffusers import apply
from entropy_attn.integrations.diffusers.models import MODELS, model_of
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.scale import Fixed, LogN
from tests.support.footprint import footprint
from tests.support.tiny_models import Spy
from tests.support.tiny_pipelines import PIPELINES

TEXT_ARGUMENTS = ("encoder_hidden_states", "cap_feats", "class_labels")


@pytest.fixture(params=PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_row_has_a_pipeline():
    rows = {model_of(getattr(PIPELINES[name].make(), PIPELINES[name].component)).denoiser for name in PIPELINES}
    assert rows == {model.denoiser for model in MODELS}


def test_guidance_is_arranged_as_the_table_says(name: str):
    """Embeddings of the prompt are ones, unconditional ones are zeros. If this fails, diffusers has changed."""
    case = PIPELINES[name]
    pipe, seen = case.make(), []
    denoiser = getattr(pipe, case.component)
    parameters = list(inspect.signature(type(denoiser).forward).parameters)[1:]

    def note(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        given = dict(zip(parameters, args, strict=False)) | kwargs
        text = next((given[each] for each in TEXT_ARGUMENTS if each in given), None)
        seen.append(None if text is None else [bool(each.float().mean() > 0.5) for each in text])

    denoiser.register_forward_pre_hook(note, with_kwargs=True)
    case.run(pipe)
    guidance = model_of(denoiser).guidance
    if not guidance.branches:
        assert seen == [None] * 2
    elif guidance.separate_calls:
        assert seen == [[branch == "cond"] for branch in guidance.branches] * 2
    elif name not in ("ldm", "dit"):
        assert seen == [[branch == "cond" for branch in guidance.branches]] * 2


def test_steps_and_branches(name: str):
    case = PIPELINES[name]
    pipe, recorder = case.make(), EntropyRecorder()
    guidance = model_of(getattr(pipe, case.component)).guidance
    with apply(pipe, scale=None, record=recorder) as handle:
        for options in ({}, case.off, {}):
            recorder.reset()
            case.run(pipe, **options)
            table = recorder.to_dataframe()
            assert set(table["step"]) == {0, 1}
            assert set(table["layer"]) == set(handle.layers)
            guided = not options and bool(guidance.branches)
            assert set(table["branch"]) == ({"cond", "uncond"} if guided else {"all"})
            per_layer = table.groupby(["layer", "step", "branch", "head"]).size()
            assert set(per_layer) == {1}


def test_the_training_size_is_found(name: str):
    case = PIPELINES[name]
    pipe, spy = case.make(), Spy()
    with apply(pipe, scale=spy, layers="all"):
        case.run(pipe)
    found = {info.train_tokens for info in spy.calls if info.kind != "cross" and info.text_tokens < info.seqlen_k}
    assert max(found, default=None) == case.train
    if case.train is None:
        return
    output = case.run(pipe)
    with apply(pipe, scale=LogN()):
        case.run(pipe)
    assert torch.equal(case.run(pipe), output)


def test_the_image_is_the_same_and_nothing_is_left_behind(name: str):
    case = PIPELINES[name]
    pipe = case.make()
    others = {key: each for key, each in pipe.components.items() if isinstance(each, torch.nn.Module)}
    output = case.run(pipe)  # some pipelines also prepare their denoiser for caches
    before = {key: footprint(each) for key, each in others.items()}
    with apply(pipe, scale=None if name == "lumina" else Fixed(), layers="all"):
        assert torch.equal(case.run(pipe), output)
        for key, each in others.items():
            assert key == case.component or footprint(each) == before[key]
    assert {key: footprint(each) for key, each in others.items()} == before
    assert "encode_prompt" not in vars(pipe)


def test_the_factor_of_lumina_is_replaced():
    """Its pipeline already uses the factor of LogN, relative to the default image size: nothing changes."""
    case = PIPELINES["lumina"]
    pipe, recorder = case.make(), EntropyRecorder()
    original = case.run(pipe)
    base = (pipe.default_image_size // 16) ** 2
    with apply(pipe, scale=None, record=recorder):
        case.run(pipe)
    with apply(pipe, scale=LogN(train_tokens=base)):
        torch.testing.assert_close(case.run(pipe), original, rtol=1e-4, atol=1e-4)
    scales = recorder.to_dataframe().query("kind == 'self'")["scale"]
    assert scales.unique() == pytest.approx([math.sqrt(math.log(24, base) / 16)])
    with apply(pipe, scale=Fixed()):
        assert not torch.equal(case.run(pipe), original)


def test_a_training_size_in_pixels(name: str):
    case = PIPELINES[name]
    if case.train is None:
        return
    pipe, spy = case.make(), Spy()
    plain = Spy()
    with apply(pipe, scale=plain, train_size=(192, 128)):
        case.run(pipe)
    with apply(pipe, scale=spy, train_size=(384, 256)):
        case.run(pipe)
    small, large = (max(info.train_tokens for info in each.calls) for each in (plain, spy))
    assert large == 4 * small


def test_a_pipeline_with_two_denoisers_is_refused():
    pipe = PIPELINES["wan"].make()
    pipe.register_modules(transformer_2=pipe.transformer)
    with pytest.raises(RuntimeError, match=r"WanPipeline.*two denoisers.*pipe\.transformer_2"):
        apply(pipe)
    apply(pipe.transformer, train_size=16).remove()


def test_a_transformer_without_a_stated_training_size():
    with pytest.raises(ValueError, match=re.escape("train_size=...")):
        apply(PIPELINES["flux"].make().transformer)


def test_texts_of_a_pipeline_without_encode_prompt():
    """LDM's pipeline calls its text encoder itself."""
    case = PIPELINES["ldm"]
    pipe = case.make()
    before = footprint(pipe.bert)
    for prompts, branches in ((["a b", "c"], {"cond", "uncond"}), ("", {"cond", "uncond"})):
        with apply(pipe, scale=None, record=(recorder := EntropyRecorder())):
            case.run(pipe, prompt=prompts)
        assert set(recorder.to_dataframe()["branch"]) == branches
    assert footprint(pipe.bert) == before
    pipe.bert.register_forward_pre_hook(lambda module, args: (args[0].flip(1),))  # not the texts of the pipeline
    with apply(pipe, scale=None, record=EntropyRecorder()):
        with pytest.raises(ValueError, match=r"rows of its batch are of a text other than the prompt"):
            case.run(pipe)


@pytest.mark.parametrize("alone", [False, True], ids=["pipeline", "denoiser"])
def test_direct_calls_of_the_denoiser(alone: bool):
    """Without the pipeline, the branches of a batch are unknown; its timestep tells the step."""
    from tests.support.tiny_denoisers import CASES

    pipe, call = PIPELINES["flux"].make(), CASES["flux"].call(8, 8)
    target = pipe.transformer if alone else pipe
    recorder = EntropyRecorder(branches=None if alone else ("all",))
    with apply(target, scale=None, record=recorder), torch.no_grad():
        for _ in range(3):
            pipe.transformer(**call)
    seen = recorder.to_dataframe()[["step", "branch"]].drop_duplicates().to_numpy().tolist()
    assert seen == [[0, "all"]]
    with apply(pipe, scale=None, record=EntropyRecorder()), torch.no_grad():
        with pytest.raises(ValueError, match=r"not called by FluxPipeline.*apply to the pipeline that calls it"):
            pipe.transformer(**call)
