"""Calls of a denoiser are grouped into steps by their timesteps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler

import entropy_attn as ea
from entropy_attn.integrations.diffusers.steps import StepCounter
from tests.support.tiny_models import Spy, make_pipe, sample


def steps(timesteps: list[Any], scheduler: Any = None) -> list[int]:
    counter, found = StepCounter(), []
    for timestep in timesteps:
        counter.count(scheduler, timestep)
        found.append(counter.step)
    return found


def test_a_step_is_a_timestep():
    table = torch.tensor([9, 9, 5])
    assert steps([20, 20, 10, 10, 5]) == [0, 0, 1, 1, 2]
    assert steps([torch.tensor(each) for each in (9, 9, 5)]) == [0, 0, 1]
    assert steps([table[0], table[0].expand(2), table[1], table[2]]) == [0, 0, 1, 2]  # the same value twice
    assert steps([None, None]) == [0, 1]
    assert steps([torch.tensor([9]), torch.tensor([9, 9])]) == [0, 1]


def test_a_scheduler_that_advanced_separates_equal_timesteps():
    scheduler, counter = SimpleNamespace(step_index=None, timesteps=None), StepCounter()
    found = []
    for scheduler.step_index in (None, None, 1, 1):
        found.append(counter.count(scheduler, torch.tensor([0.5])))
    assert found == [True, False, True, False]


def test_new_timesteps_start_a_new_generation():
    first, second = torch.arange(9, 0, -3), torch.arange(9, 0, -3)
    scheduler, counter = SimpleNamespace(timesteps=first), StepCounter()
    counter.count(scheduler, first[0])
    assert not counter.is_new_schedule(scheduler, first[1])
    scheduler.timesteps = second
    assert counter.is_new_schedule(scheduler, second[0])
    assert not counter.is_new_schedule(scheduler, first[1]), "as a panorama does, for each of its views"


def test_without_a_scheduler_a_new_list_of_timesteps_starts_a_new_generation():
    first, second, counter = torch.arange(3), torch.arange(3), StepCounter()
    counter.count(None, first[2])
    assert not counter.is_new_schedule(None, first[1].expand(4))
    assert counter.is_new_schedule(None, second[0].expand(4))
    for by_hand in (torch.tensor(1), torch.tensor([1, 2]), torch.tensor([1, 2])[:1], 5, None):
        assert not counter.is_new_schedule(None, by_hand)


@pytest.mark.parametrize("alone", [False, True], ids=["pipeline", "denoiser"])
def test_each_generation_starts_at_step_0(alone: bool):
    pipe, spy = make_pipe(), Spy()
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)  # one timestep occurs twice
    with ea.apply(pipe.unet if alone else pipe, scale=spy):
        for count in (2, 3):
            spy.calls.clear()
            sample(pipe, steps=count)
            assert sorted({info.step for info in spy.calls}) == list(range(count + 1))
