"""Routing survives changes of the model by other code: transformers first; test_apply.py has the tests of the UNet."""

from __future__ import annotations

import copy
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    PAGCFGIdentitySelfAttnProcessor2_0,
)
from torch.overrides import TorchFunctionMode

from entropy_attn.integrations.diffusers import apply
from entropy_attn.integrations.diffusers.processors import COPY
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.scale import Fixed
from tests.support.footprint import footprint
from tests.support.tiny_denoisers import CASES
from tests.support.tiny_models import Spy, make_unet
from tests.support.tiny_pipelines import PIPELINES

TRANSFORMERS = ("sd3", "flux", "pixart", "wan")


def denoise(name: str, denoiser: Any) -> torch.Tensor:
    return denoiser(**CASES[name].call(*CASES[name].sizes[0]), return_dict=False)[0]


@pytest.fixture(params=TRANSFORMERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
@pytest.mark.parametrize("name", ["flux", "pixart", "wan", "auraflow"])
def test_fused_projections(name: str):
    denoiser = CASES[name].make()
    expected, spy = denoise(name, denoiser), Spy()
    with apply(denoiser, scale=spy, layers="all", train_size=16) as handle:
        denoiser.fuse_qkv_projections()
        torch.testing.assert_close(denoise(name, denoiser), expected, rtol=1e-3, atol=1e-4)
        assert {info.layer for info in spy.calls} == set(handle.layers)
        spy.calls.clear()
        denoiser.unfuse_qkv_projections()
        torch.testing.assert_close(denoise(name, denoiser), expected, rtol=1e-3, atol=1e-4)
        assert {info.layer for info in spy.calls} == set(handle.layers)


@pytest.mark.parametrize("record", [False, True])
def test_gradient_checkpointing(name: str, record: bool):
    denoiser = CASES[name].make().train()
    recorder = EntropyRecorder()

    def gradients() -> torch.Tensor:
        denoiser.zero_grad()
        denoise(name, denoiser).square().sum().backward()
        return torch.cat([p.grad.flatten() for n, p in denoiser.named_parameters() if n.endswith("to_q.weight")])

    with apply(denoiser, scale=Fixed(0.3), train_size=16, record=recorder if record else None) as handle:
        expected = gradients()
        recorder.reset()
        denoiser.enable_gradient_checkpointing()
        torch.testing.assert_close(gradients(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        assert len(recorder) == (len(handle.layers) if record else 0)


@torch.no_grad()
def test_copies_and_saved_models_are_plain(name: str, tmp_path):
    denoiser = CASES[name].make()
    expected, before = denoise(name, denoiser), footprint(denoiser)
    with apply(denoiser, scale=Fixed(0.0), layers="all", train_size=16):
        twin = copy.deepcopy(denoiser)
        denoiser.save_pretrained(tmp_path)
        assert not torch.equal(denoise(name, denoiser), expected)
    for other in (twin, type(denoiser).from_pretrained(tmp_path)):
        assert type(other) is type(denoiser)
        assert not any("entropy_attn" in key for module in other.modules() for key in vars(module))
        torch.testing.assert_close(denoise(name, other), expected)
    assert footprint(denoiser) == before


def test_pipelines_that_share_a_denoiser():
    from diffusers import PixArtSigmaPipeline

    case = PIPELINES["pixart"]
    pipe, spy = case.make(), Spy()
    with apply(pipe, scale=spy, layers="all"):
        other = PixArtSigmaPipeline.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        assert other.transformer is pipe.transformer
        case.run(other)
    assert {info.step for info in spy.calls} == {0, 1}


@torch.no_grad()
def test_layers_without_a_copy_of_their_processor_are_also_routed():
    """In a subclass of a processor of diffusers, code of the parent calls torch's attention."""

    class Derived(AttnProcessor2_0):
        def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().__call__(*args, **kwargs)

    unet, spy = make_unet(), Spy(lambda info: 0.0)
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(1, 16, 64)
    with apply(unet, scale=spy):
        routed = layer(hidden)
        assert layer.__dict__[COPY][1] is not None
        layer.set_processor(Derived())
        torch.testing.assert_close(layer(hidden), routed)
        assert layer.__dict__[COPY][1] is None
        assert type(layer.processor) is Derived
    assert len(spy.calls) == 2


@torch.no_grad()
def test_the_original_processor_stays_visible():
    unet = make_unet()
    processors = unet.attn_processors
    with apply(unet, scale=None):
        assert unet.attn_processors == processors and {type(each) for each in processors.values()} == {AttnProcessor2_0}
        unet.set_attn_processor(AttnProcessor2_0())
        layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1
        original = layer.processor
        del layer.processor
        assert not hasattr(layer, "processor")
        layer.processor = original
    assert unet.attn_processors.keys() == processors.keys()


@torch.no_grad()
def test_layers_run_without_a_function_mode():
    """A function mode would see every torch function of a layer, which would be most of the cost of routing."""
    unet, modes = make_unet(), []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            modes.append(torch.overrides._len_torch_function_stack())
            return func(*args, **(kwargs or {}))

    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    with apply(unet, scale=None), Watch():
        layer(torch.randn(1, 16, 64))
    assert set(modes) == {0}


def with_ip_adapter(unet: Any, images: int = 1) -> None:
    """Cross-attention also to the four tokens of each image prompt."""
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            processor = IPAdapterAttnProcessor2_0(module.inner_dim, 32, num_tokens=(4,) * images)
            module.set_processor(processor.eval())


@torch.no_grad()
def test_ip_adapter_keeps_text_and_image_apart():
    unet, spy, recorder = make_unet(), Spy(), EntropyRecorder()
    text, images = torch.randn(1, 7, 32), [torch.randn(1, 1, 4, 32)]
    latents = torch.randn(1, 4, 16, 16)

    def run() -> torch.Tensor:
        contexts = [module for name, module in unet.named_modules() if name.endswith("attn2")]
        hooks = [
            module.register_forward_pre_hook(
                lambda m, args, kwargs: (args, {**kwargs, "encoder_hidden_states": (text, images)}), with_kwargs=True
            )
            for module in contexts
        ]
        found = unet(latents, torch.tensor(10), encoder_hidden_states=text).sample
        for hook in hooks:
            hook.remove()
        return found

    with apply(unet, scale=spy, layers="all"):
        with_ip_adapter(unet)  # loaded while routed
        routed = run()
    calls = {(info.layer, info.kind, info.seqlen_k, info.text_tokens) for info in spy.calls}
    attn2 = {name for name, _ in unet.named_modules() if name.endswith("attn2")}
    assert {call for call in calls if call[1] == "cross"} == {(name, "cross", 7, 7) for name in attn2} | {
        (f"{name}.image", "cross", 4, 0) for name in attn2
    }
    assert torch.equal(run(), routed)
    with apply(unet, scale=None, record=recorder):
        torch.testing.assert_close(run(), routed, rtol=1e-4, atol=1e-4)
    table = recorder.to_dataframe()
    assert set(table[table["layer"].str.endswith(".image")]["seqlen_k"]) == {4}
    assert set(table[table["layer"].str.endswith("attn2")]["seqlen_k"]) == {7}


@torch.no_grad()
def test_perturbed_attention_guidance():
    """PAG replaces processors during a call; the perturbed part of the batch makes no attention call."""
    from diffusers import StableDiffusionPAGPipeline

    from tests.support.tiny_models import make_pipe, sample

    pipe = StableDiffusionPAGPipeline(**make_pipe().components, requires_safety_checker=False, pag_applied_layers="mid")
    pipe.set_progress_bar_config(disable=True)
    expected, spy = sample(pipe, pag_scale=3.0), Spy()
    processors = pipe.unet.attn_processors
    with apply(pipe, scale=Fixed(), layers="all"):
        assert torch.equal(sample(pipe, pag_scale=3.0), expected)
    with apply(pipe, scale=spy, layers="all") as handle:
        sample(pipe, pag_scale=3.0)
    assert {info.layer for info in spy.calls} == set(handle.layers)
    assert torch.equal(sample(pipe, pag_scale=3.0), expected)
    assert {key: type(each) for key, each in pipe.unet.attn_processors.items()} == {
        key: type(each) for key, each in processors.items()
    }
    assert PAGCFGIdentitySelfAttnProcessor2_0 not in map(type, processors.values())


@torch.no_grad()
def test_backends_of_the_dispatcher():
    denoiser = CASES["flux"].make()
    expected, spy = denoise("flux", denoiser), Spy()
    processors = [module.processor for module in denoiser.modules() if isinstance(module, AttentionModuleMixin)]
    with apply(denoiser, scale=spy, train_size=16) as handle:
        for processor in processors:
            processor._attention_backend = AttentionBackendName._NATIVE_MATH
        torch.testing.assert_close(denoise("flux", denoiser), expected, rtol=1e-4, atol=1e-4)
        assert len(spy.calls) == len(handle.layers)
        for processor in processors:
            processor._attention_backend = AttentionBackendName.FLASH
        with pytest.raises(RuntimeError, match=r"set_attention_backend\('native'\)"):
            denoise("flux", denoiser)
    with pytest.raises(RuntimeError, match=r"attn.*attention backend, 'flash'.*set_attention_backend\('native'\)"):
        apply(denoiser, scale=None)


@pytest.mark.parametrize(
    ("case", "argument"), [("flux2", "kv_cache"), ("zimage", "siglip_feats"), ("ltx", "video_coords")]
)
def test_arguments_that_are_refused(case: str, argument: str):
    denoiser = CASES[case].make()
    with apply(denoiser, scale=None), pytest.raises(RuntimeError, match=rf"{CASES[case].row}: {argument}: "):
        denoiser(**CASES[case].call(*CASES[case].sizes[0]), **{argument: torch.ones(1)})


def test_attention_without_a_torch_call_raises():
    denoiser = CASES["pixart"].make()
    with apply(denoiser, scale=None):
        denoiser.set_attn_processor(AttnProcessor())
        with pytest.raises(RuntimeError, match=re.escape("AttnProcessor, makes no scaled_dot_product_attention call")):
            denoise("pixart", denoiser)


@torch.no_grad()
def test_a_cache_replaces_a_layer_at_some_steps():
    """Pyramid attention broadcast and similar caches: the layer is called, and its attention is skipped."""
    from diffusers import PyramidAttentionBroadcastConfig

    name = "flux"

    def steps(denoiser: Any) -> list[torch.Tensor]:
        skipped = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (0, 1000)}
        blocks = ("transformer_blocks", "single_transformer_blocks")
        denoiser.enable_cache(
            PyramidAttentionBroadcastConfig(
                **skipped, spatial_attention_block_identifiers=blocks, current_timestep_callback=lambda: 500
            )
        )
        found = [denoise(name, denoiser) for _ in range(4)]
        denoiser.disable_cache()
        return found

    expected, denoiser, spy = steps(CASES[name].make()), CASES[name].make(), Spy()
    with apply(denoiser, scale=spy, layers="all", train_size=16) as handle:
        assert all(map(torch.equal, steps(denoiser), expected))
    assert 0 < len(spy.calls) < 4 * len(handle.layers)  # some were skipped


@torch.no_grad()
@pytest.mark.parametrize("hooks", ["model", "sequential"])
def test_offloading(name: str, hooks: str):
    """The hooks of enable_model_cpu_offload and enable_sequential_cpu_offload, which themselves need a GPU."""
    accelerate = pytest.importorskip("accelerate")
    expected, denoiser, spy = denoise(name, CASES[name].make()), CASES[name].make(), Spy()
    with apply(denoiser, scale=spy, layers="all", train_size=16) as handle:
        if hooks == "model":
            _, hook = accelerate.cpu_offload_with_hook(denoiser, "cpu")
        else:
            accelerate.cpu_offload(denoiser, "cpu")
        for _ in range(2):
            spy.calls.clear()
            assert torch.equal(denoise(name, denoiser), expected)
            assert {info.layer for info in spy.calls} == set(handle.layers)
        if hooks == "model":
            hook.offload()
    assert torch.equal(denoise(name, denoiser), expected)  # the hooks still work after the routing
    accelerate.hooks.remove_hook_from_module(denoiser, recurse=True)
    assert torch.equal(denoise(name, denoiser), expected)


@torch.no_grad()
def test_adapters_that_are_loaded_and_unloaded(name: str):
    """A LoRA wraps the projections of a routed layer in other layers; unloading removes these."""
    denoiser, spy = CASES[name].make(), Spy()
    plain = denoise(name, denoiser)
    projections = [key for key, _ in denoiser.named_modules() if key.endswith(".to_q")]

    def adapted() -> None:
        for key in projections:
            layer = denoiser.get_submodule(key)
            denoiser.set_submodule(key, torch.nn.Sequential(layer, Doubled()))

    with apply(denoiser, scale=spy, layers="all", train_size=16) as handle:
        adapted()
        changed = denoise(name, denoiser)
        for key in projections:
            denoiser.set_submodule(key, denoiser.get_submodule(key)[0])
        assert torch.equal(denoise(name, denoiser), plain) and not torch.equal(changed, plain)
        assert len(spy.calls) == 2 * len({(info.layer) for info in spy.calls})
        assert {info.layer for info in spy.calls} == set(handle.layers)
    adapted()
    assert torch.equal(denoise(name, denoiser), changed)


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_threads():
    """Each thread has a model and a scale, at the same time."""

    values, model = [0.05, 0.2, 0.4, 0.8], CASES["flux"]
    denoisers = [model.make() for _ in values]  # not in the threads, which share torch's random numbers
    call = model.call(*model.sizes[0])

    def alone(value: float, denoiser: Any) -> torch.Tensor:
        with torch.no_grad(), apply(denoiser, scale=Fixed(value), layers="all", train_size=16):
            for _ in range(8):
                result = denoiser(**call, return_dict=False)[0]
        return result

    one_by_one = list(map(alone, values, denoisers))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(alone, values, denoisers))
    assert all(map(torch.equal, together, one_by_one))
    assert not torch.equal(one_by_one[0], one_by_one[1])
