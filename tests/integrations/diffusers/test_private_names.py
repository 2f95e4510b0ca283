"""Undocumented names of diffusers that routing relies on. If a test fails, diffusers has changed."""

from __future__ import annotations

import inspect

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models import attention_dispatch, attention_processor
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention, MochiAttention

from entropy_attn.integrations.diffusers import private, processors
from entropy_attn.integrations.diffusers.models import model_of
from tests.support.tiny_denoisers import CASES
from tests.support.tiny_models import make_pipe, sample


def test_attention_modules():
    parameters = list(inspect.signature(Attention.forward).parameters)
    assert parameters[:4] == ["self", "hidden_states", "encoder_hidden_states", "attention_mask"]
    attention = Attention(8, heads=2, dim_head=4)
    assert attention.added_kv_proj_dim is None
    assert type(attention.processor) is attention_processor.AttnProcessor2_0
    assert (attention.heads, attention.inner_dim) == (2, 8)


@pytest.mark.parametrize("name", private.OTHER_PROCESSORS)
def test_processors_that_do_not_call_torch(name: str):
    assert "F.scaled_dot_product_attention(" not in inspect.getsource(getattr(attention_processor, name).__call__)


def test_denoiser():
    assert list(inspect.signature(UNet2DConditionModel.forward).parameters)[1] == "sample"


@pytest.mark.parametrize("pipeline", [StableDiffusionPipeline, StableDiffusionXLPipeline])
def test_guidance_is_a_property_of_the_pipeline(pipeline: type):
    assert isinstance(pipeline.do_classifier_free_guidance, property)


def test_guidance_halves_are_unconditional_first():
    pipe, seen = make_pipe(), []

    def note(module, args, kwargs):
        seen.append(kwargs["encoder_hidden_states"])

    pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
    negative, positive = torch.zeros(1, 7, 32), torch.ones(1, 7, 32)
    sample(pipe, steps=1, prompt_embeds=positive, negative_prompt_embeds=negative)
    assert torch.equal(seen[0], torch.cat([negative, positive]))


def test_a_generation_starts_with_new_timesteps():
    pipe, seen = make_pipe(), []
    pipe.unet.register_forward_pre_hook(lambda m, args: seen.append(pipe.scheduler.timesteps))
    sample(pipe, steps=2)
    sample(pipe, steps=2)
    assert seen[0] is seen[1] and seen[2] is seen[3] and seen[1] is not seen[2]


def test_pipelines_state_their_pixels_per_latent_cell():
    assert make_pipe().vae_scale_factor == 2


def test_what_guidance_relies_on():
    """The order of a scheduler's arguments, where a UNet halves its input, and the device of the encoders."""
    for scheduler in (DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        assert list(inspect.signature(scheduler.step).parameters)[1:4] == ["model_output", "timestep", "sample"]
        assert list(inspect.signature(scheduler.scale_model_input).parameters)[1] == "sample"
    pipe = make_pipe()
    assert [block.downsamplers is None for block in pipe.unet.down_blocks] == [False, True]
    assert [block.upsamplers is None for block in pipe.unet.up_blocks] == [False, True]
    layers = {name: m for name, m in pipe.unet.named_modules() if isinstance(m, Attention)}
    assert all(module.is_cross_attention == name.endswith("attn2") for name, module in layers.items())
    assert pipe._execution_device == torch.device("cpu")
    sample(pipe, steps=3)
    assert pipe.num_timesteps == 3
    parameters = list(inspect.signature(UNet2DConditionModel.forward).parameters)
    assert parameters[:4] == ["self", "sample", "timestep", "encoder_hidden_states"]


@pytest.mark.parametrize("pipeline", [StableDiffusionPipeline, StableDiffusionXLPipeline])
def test_a_pipeline_scales_then_denoises_then_steps(pipeline: type):
    source = inspect.getsource(pipeline.__call__)
    positions = [
        source.index(call) for call in ("self.scheduler.scale_model_input(", "self.unet(", "self.scheduler.step(")
    ]
    assert positions == sorted(positions) and "self.encode_prompt(" in source[: positions[0]]


NAMES = [
    (attention_processor, ("Attention", "MochiAttention", *private.OTHER_PROCESSORS)),
    (attention_dispatch, ("AttentionBackendName", "_AttentionBackendRegistry", "dispatch_attention_fn")),
    (attention_dispatch.AttentionBackendName, ("NATIVE", *(f"_NATIVE_{each}" for each in ("CUDNN", "EFFICIENT")))),
    (attention_dispatch.AttentionBackendName, ("_NATIVE_FLASH", "_NATIVE_MATH")),
    (attention_dispatch._AttentionBackendRegistry, ("get_active_backend",)),
]


@pytest.mark.parametrize(("holder", "name"), [(holder, name) for holder, names in NAMES for name in names])
def test_private_names_exist(holder, name: str):
    assert hasattr(holder, name), f"{getattr(holder, '__name__', holder)} of diffusers has no {name}"


def test_the_dispatcher():
    parameters = inspect.signature(attention_dispatch.dispatch_attention_fn).parameters
    assert list(parameters) == list(inspect.signature(processors._dispatch).parameters)
    backend, function = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    assert backend == attention_dispatch.AttentionBackendName.NATIVE
    assert "permute(0, 2, 1, 3)" in inspect.getsource(function)


@pytest.mark.parametrize("name", CASES)
def test_denoisers_have_the_attributes_that_routing_reads(name: str):
    case = CASES[name]
    with torch.device("meta"):
        denoiser = getattr(diffusers, case.row)(**case.config)
    model = model_of(denoiser)
    parameters = list(inspect.signature(type(denoiser).forward).parameters)
    assert set(case.call(*case.sizes[0])) <= set(parameters)
    assert set(model.refused) <= set(parameters), "a refused argument has been renamed"
    kinds = (Attention, MochiAttention, AttentionModuleMixin)
    layers = {key: module for key, module in denoiser.named_modules() if isinstance(module, kinds)}
    assert layers and all(model.rule(key) is not None for key in layers)
    for key, module in layers.items():
        assert module.heads and (getattr(module, "head_dim", None) or module.inner_dim), key
        routed = model.rule(key).kind is not None
        copied = processors._copied_class(type(module.processor))
        assert (copied is not None) == routed, f"{type(module.processor).__name__} can no longer be copied"
        # The route of the table; the text refiner of HunyuanVideo has another one.
        if routed and "token_refiner" not in key:
            dispatched = hasattr(module.processor, "_attention_backend")
            assert dispatched == (model.route == "dispatch"), f"{key} has another route"


def test_schedulers_count_their_steps():
    """This distinguishes the branches of pipelines that call the denoiser once per branch."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    for scheduler in (FlowMatchEulerDiscreteScheduler(), UniPCMultistepScheduler()):
        scheduler.set_timesteps(3)
        assert scheduler.step_index is None
        for step in range(2):
            scheduler.step(torch.zeros(1, 2, 2, 2), scheduler.timesteps[step], torch.zeros(1, 2, 2, 2))
            assert scheduler.step_index == step + 1
