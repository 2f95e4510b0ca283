"""Hooks into the calls of a pipeline: its arguments, who calls the denoiser, and that nothing is left behind."""

from __future__ import annotations

import copy
import inspect
import threading
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import entropy_attn as ea
from entropy_attn.guidance import TSAM, attach
from entropy_attn.integrations.diffusers.pipeline_calls import (
    UNNAMED,
    PipelineRun,
    add_around,
    arounds_of,
    call_parameters,
    follow,
    named_arguments,
    remove_around,
    run_of,
    running,
    unfollow,
)
from tests.support.tiny_models import TEXT_TOKENS, make_pipe, make_text_pipe


class Passing(StableDiffusionPipeline):
    """Passes all arguments but one to its parent."""

    def __call__(self, *args: Any, extra: int = 3, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class Small:
    def __call__(self, prompt: str = "a b", steps: int = 2, *, size: int = 8) -> None: ...

    def invert(self, image: Any, source_prompt: str) -> None: ...


def test_arguments_are_known_by_name():
    assert named_arguments(Small, "__call__", (), {}) == {"prompt": "a b", "steps": 2, "size": 8}
    assert named_arguments(Small, "__call__", ("c",), {"size": 9}) == {"prompt": "c", "steps": 2, "size": 9}
    assert named_arguments(Small, "invert", (0, "c"), {}) == {"image": 0, "source_prompt": "c"}
    found = named_arguments(Passing, "__call__", ("c", 64), {"negative_prompt": "d", "extra": 4})
    assert (found["prompt"], found["height"], found["negative_prompt"], found["extra"]) == ("c", 64, "d", 4)
    assert found["num_inference_steps"] == 50
    assert "extra" not in call_parameters(Passing) and "self" not in call_parameters(Passing)


def run(**arguments: Any) -> PipelineRun:
    return PipelineRun(Small(), "__call__", (), arguments)


def test_a_text_has_the_names_of_its_arguments():
    embeds = torch.ones(1, 3, 4)
    assert run(prompt="c", negative_prompt="d").names_of("d") == ("negative_prompt",)
    assert run(prompt="c", negative_prompt="c").names_of("c") == ("prompt", "negative_prompt")
    assert run(prompt="c", source_prompt=["d", "e"]).names_of(["d", "e"]) == ("source_prompt",)
    assert run(prompt="c").names_of(["c", "c"]) == ("prompt",)
    assert run(prompt=["c", "d"]).names_of(["d", "c"]) == (UNNAMED,)
    assert run(prompt=None, prompt_embeds=embeds).names_of(embeds) == ("prompt_embeds",)
    assert run(prompt=None, prompt_embeds=embeds).names_of(embeds.clone()) == (UNNAMED,)
    assert run(prompt="c", image=None).names_of(None) == (UNNAMED,)


def test_the_empty_text_counts_as_an_omitted_prompt():
    embeds = torch.ones(1, 3, 4)
    assert run(prompt="c").names_of("") == ("negative_prompt",)
    assert run(prompt=["c", "d"]).names_of(["", ""]) == ("negative_prompt",)
    assert run(prompt="").names_of("") == ("prompt", "negative_prompt")
    assert run(prompt="", negative_prompt="d").names_of("") == ("prompt",)
    assert run(prompt=None).names_of([""]) == ("prompt", "negative_prompt")
    assert run(prompt=None, prompt_embeds=embeds).names_of("") == ("negative_prompt",)
    assert run(prompt="c", negative_prompt="d").names_of("") == (UNNAMED,)
    assert run(prompt="c", negative_prompt="d", source_prompt="").names_of("") == ("source_prompt",)


def state(pipe: Any) -> list:
    return [type(pipe), set(vars(pipe))]


def test_nothing_is_left_behind_in_any_order_of_removal():
    pipe, seen = make_pipe(), []

    def note(pipe: Any, call: Any, args: tuple, kwargs: dict) -> Any:
        seen.append(running(pipe))
        return call(*args, **kwargs)

    embeds = torch.ones(1, TEXT_TOKENS, 32)
    options = {"prompt_embeds": embeds, "num_inference_steps": 1, "height": 32, "width": 32, "guidance_scale": 1.0}
    pipe(output_type="latent", **options)  # this sets attributes of the pipeline
    before = state(pipe)
    for order in ((unfollow, remove_around), (remove_around, unfollow)):
        add_around(pipe, note)
        follow(pipe)
        assert type(pipe) in [StableDiffusionPipeline] and isinstance(pipe, StableDiffusionPipeline)
        assert inspect.signature(pipe.__call__) == inspect.signature(StableDiffusionPipeline.__call__.__get__(pipe))
        pipe(output_type="latent", **options)
        assert seen.pop().arguments["prompt_embeds"] is embeds and running(pipe) is None
        for undo in order:
            undo(pipe, *((note,) if undo is remove_around else ()))
            assert bool(arounds_of(pipe)) == (undo is order[0])
        assert state(pipe) == before


def test_copies_are_not_followed():
    pipe = make_pipe()
    follow(pipe)
    twin = copy.deepcopy(pipe)
    assert type(twin) is StableDiffusionPipeline and arounds_of(twin) == ()
    unfollow(pipe)


def test_a_call_ends_after_an_error_and_belongs_to_its_thread():
    pipe, other = make_pipe(), make_pipe()
    found: list[Any] = []
    with pytest.raises(KeyError), run_of(pipe, (), {}) as outer:
        thread = threading.Thread(target=lambda: found.append(running(pipe)))
        thread.start()
        thread.join()
        assert running(pipe) is outer and running(other) is None and running(None) is None
        with run_of(pipe, (), {}) as inner, run_of(other, (), {}):
            assert running(pipe) is inner is not outer
        raise KeyError
    assert found == [None] and running(pipe) is None


@pytest.mark.parametrize("guided_first", [False, True])
def test_guidance_and_routing_are_attached_and_removed_in_any_order(guided_first: bool):
    pipe, recorder = make_text_pipe(), ea.EntropyRecorder()
    options = {"num_inference_steps": 1, "height": 32, "width": 32, "output_type": "latent"}
    pipe("ab c d", **options)  # this sets attributes of the pipeline
    before = state(pipe)
    make = [lambda: attach(pipe, TSAM(alpha=0.0)), lambda: ea.apply(pipe, scale=None, record=recorder)]
    first, second = (each() for each in (make if guided_first else make[::-1]))
    pipe("ab c d", **options)
    first.remove()
    pipe("ab c d", **options)
    second.remove()
    assert state(pipe) == before
    assert set(recorder.to_dataframe()["branch"]) == {"cond", "uncond"}


def test_the_prompt_is_identified_by_its_argument_and_not_by_a_variable():
    """A wrapper may use any names for its variables."""

    class Renamed(StableDiffusionPipeline):
        def __call__(self, prompt: str, negative_prompt: str = "") -> None:
            first, second = negative_prompt, prompt
            negative_prompt = second  # a variable with a misleading name
            del prompt
            uncond, _ = self.encode_prompt(first, self.device, 1, False)
            cond, _ = self.encode_prompt(negative_prompt, self.device, 1, False)
            self.scheduler.set_timesteps(1)
            for t in self.scheduler.timesteps:
                self.unet(torch.zeros(2, 4, 8, 8), t, encoder_hidden_states=torch.cat([cond, uncond]))

    pipe = Renamed(**make_text_pipe().components, requires_safety_checker=False)
    recorder = ea.EntropyRecorder(per_query=True)
    with ea.apply(pipe, scale=None, record=recorder), torch.no_grad():
        pipe("ab c", "d e")
    table = recorder.to_dataframe()
    assert list(dict.fromkeys(table["branch"])) == ["cond", "uncond"]


def test_a_batch_of_several_texts_that_the_pipeline_did_not_pass_is_refused():
    pipe = make_pipe()
    call = torch.zeros(2, 4, 8, 8), torch.tensor(10), torch.randn(2, TEXT_TOKENS, 32)
    reason = r"not called by StableDiffusionPipeline, the pipeline that was routed.*EntropyRecorder\(branches="
    with ea.apply(pipe, scale=None, record=ea.EntropyRecorder()), torch.no_grad():
        with pytest.raises(ValueError, match=reason):
            pipe.unet(*call)
    recorders = ea.EntropyRecorder(branches=("all",)), ea.EntropyRecorder()
    for target, recorder in zip((pipe, pipe.unet), recorders, strict=True):
        with ea.apply(target, scale=None, record=recorder), torch.no_grad():
            pipe.unet(*call)
        assert set(recorder.to_dataframe()["branch"]) == {"all"}
