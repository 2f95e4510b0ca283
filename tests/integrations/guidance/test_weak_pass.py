"""The guider in diffusers' modular pipelines, against diffusers' perturbed-attention guidance and a guider by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import ClassifierFreeGuidance, LayerSkipConfig, PerturbedAttentionGuidance, StableDiffusionXLAutoBlocks
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor
from torch.overrides import TorchFunctionMode

import entropy_attn as ea
from entropy_attn.errors import Unroutable
from entropy_attn.mix import NAG, SoftPAG
from entropy_attn.scale import Constant, DyPE, Fixed, OfBranch, Schedule
from tests.support.footprint import footprint
from tests.support.guided_pipes import make_xl
from tests.support.tiny_models import Spy

TOKENS = 8 * 12  # of the middle block at 32 x 48 pixels
MID = "mid_block.attentions.0.transformer_blocks"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return make_xl()


def generate(pipe: Any, guider: BaseGuidance, steps: int = 3) -> Tensor:
    made = StableDiffusionXLAutoBlocks().init_pipeline()
    parts = {name: part for name, part in pipe.components.items() if name in made.component_names and part is not None}
    made.update_components(**parts, guider=guider)
    made.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(4)
    options = {"height": 32, "width": 48, "num_inference_steps": steps, "generator": generator}
    return made(prompt="ab c d", output="latents", **options)


class ByHand(BaseGuidance):
    """cond + weight (cond - weak), where attention of the weak pass is `attend(query, key, value)` in the middle."""

    _input_predictions = ["pred_cond", "pred_weak"]  # noqa: RUF012

    @register_to_config
    def __init__(self, *, weight: float, attend: Any):
        super().__init__()
        self.weight, self.attend, self.mode = weight, attend, None

    num_conditions = 2
    is_conditional = True

    def prepare_inputs(self, data: Any) -> list[Any]:
        return [self._prepare_batch(data, 0, name) for name in self._input_predictions]

    def prepare_models(self, denoiser: Any) -> None:
        self._count_prepared += 1
        if self._count_prepared == 2:
            self.mode = InTheMiddle(self.attend).__enter__()

    def cleanup_models(self, denoiser: Any) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.mode = None

    def forward(self, pred_cond: Tensor, pred_weak: Tensor) -> GuiderOutput:
        return GuiderOutput(pred=pred_cond + self.weight * (pred_cond - pred_weak), pred_cond=pred_cond)


class InTheMiddle(TorchFunctionMode):
    """Self-attention of the middle block is `attend`."""

    def __init__(self, attend: Any):
        super().__init__()
        self.attend = attend

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args[0].shape[-2] == args[1].shape[-2] == TOKENS:
            return self.attend(*args[:3])
        return func(*args, **kwargs)


def probabilities(query: Tensor, key: Tensor, factor: float = 1.0) -> Tensor:
    return (query @ key.mT * (factor * query.shape[-1] ** -0.5)).softmax(-1)


def test_identity_in_all_heads_is_perturbed_attention_guidance(pipe):
    """As diffusers has it: the middle block, with classifier-free guidance, from the second step on."""
    theirs = PerturbedAttentionGuidance(
        guidance_scale=5.0,
        perturbed_guidance_scale=2.0,
        perturbed_guidance_start=0.0,
        perturbed_guidance_stop=1.0,
        perturbed_guidance_config=LayerSkipConfig(
            indices=[0, 1], fqn=MID, skip_attention=False, skip_attention_scores=True, skip_ff=False
        ),
    )
    ours = ea.WeakPassGuidance(
        mix=SoftPAG(1.0, layers=MID), guidance_scale=5.0, weak_guidance_scale=2.0, weak_start=1 / 3
    )
    wanted, before = generate(pipe, theirs), footprint(pipe.unet)
    torch.testing.assert_close(generate(pipe, ours), wanted, rtol=1e-4, atol=1e-4)
    assert footprint(pipe.unet) == before, "nothing is left in the UNet"
    plain = generate(pipe, ClassifierFreeGuidance(guidance_scale=5.0))
    assert not torch.allclose(plain, wanted, atol=1e-3)
    off = ea.WeakPassGuidance(mix=SoftPAG(layers=MID), guidance_scale=5.0, weak_guidance_scale=0.0)
    torch.testing.assert_close(generate(pipe, off), plain)
    assert off.num_conditions == 2


def test_soft_and_entropy_rectifying_guidance_by_hand(pipe):
    def soft(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        p = probabilities(query, key)
        p[:, :2] = 0.4 * p[:, :2] + 0.6 * torch.eye(p.shape[-1])
        return p @ value

    ours = ea.WeakPassGuidance(mix=SoftPAG(0.6, heads={MID: (0, 1)}), guidance_scale=1.0, weak_guidance_scale=3.0)
    wanted = generate(pipe, ByHand(weight=3.0, attend=soft))
    torch.testing.assert_close(generate(pipe, ours), wanted, rtol=1e-4, atol=1e-4)

    def flat(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return probabilities(query, key, 0.3) @ value

    ours = ea.WeakPassGuidance(
        scale=Constant(0.3), layers=rf"{MID}.*attn1$", guidance_scale=1.0, weak_guidance_scale=3.0
    )
    wanted = generate(pipe, ByHand(weight=3.0, attend=flat))
    torch.testing.assert_close(generate(pipe, ours), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(wanted, generate(pipe, ClassifierFreeGuidance(guidance_scale=1.0)), atol=1e-3)


def test_the_weak_pass_alone_is_routed_at_the_steps_of_the_pipeline(pipe):
    spy = Spy()
    generate(pipe, ea.WeakPassGuidance(scale=spy, layers="all", weak_start=0.5, weak_stop=1.0), steps=4)
    assert {info.step for info in spy.calls} == {2, 3} and {info.num_steps for info in spy.calls} == {4}
    calls = [info.layer for info in spy.calls]
    assert len(calls) == 2 * len(set(calls)), "one pass of each step"
    off = ea.WeakPassGuidance(scale=spy, enabled=False)
    assert off.num_conditions == 1 and torch.equal(off.forward(torch.ones(2)).pred, torch.ones(2))
    windowed = Schedule(Constant(0.3), (0.0, 0.5), "progress")
    found = generate(pipe, ea.WeakPassGuidance(scale=windowed, layers=MID), steps=4)
    assert not torch.allclose(found, generate(pipe, ea.WeakPassGuidance(scale=Constant(0.3), layers=MID), steps=4))


def test_a_routing_by_apply_is_off_for_the_weak_pass_alone(pipe):
    spy, weak = Spy(lambda info: 1.2 * info.head_dim**-0.5), Spy()
    recorder = ea.EntropyRecorder(branches=("all",))
    guider = ea.WeakPassGuidance(scale=weak, guidance_scale=5.0)
    with ea.apply(pipe.unet, spy, record=recorder) as handle:
        routed = footprint(pipe.unet)
        generate(pipe, guider)
        assert handle.active and footprint(pipe.unet) == routed
        layers = len({info.layer for info in spy.calls})
        assert len(spy.calls) == 3 * 2 * layers and len(weak.calls) == 3 * layers
        assert len(recorder) == 3 * 2 * len(handle.layers), "the weak pass is not recorded"
    assert type(pipe.unet).__name__ == "UNet2DConditionModel"


@pytest.mark.parametrize("where", ["policy", "unet", "between"])
def test_nothing_is_left_when_something_raises(pipe, where, monkeypatch):
    before = footprint(pipe.unet)

    class Stopped(BaseException):
        """As a KeyboardInterrupt is none that is caught."""

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise Stopped

    guider = ea.WeakPassGuidance(scale=stop if where == "policy" else Fixed(0.1), guidance_scale=1.0)
    if where == "unet":
        hook = pipe.unet.mid_block.register_forward_pre_hook(
            lambda *args: stop() if guider._count_prepared == 2 else None
        )
    if where == "between":
        monkeypatch.setattr(
            ea.WeakPassGuidance, "cleanup_models", lambda self, denoiser: stop() if self._count_prepared == 2 else None
        )
    with ea.apply(pipe.unet, None) as handle:
        with pytest.raises(Stopped):
            generate(pipe, guider)
        if where == "between":  # a pass that nobody cleaned up is ended by the next step
            guider.set_state(0, 3, None)
        assert handle.active
    if where == "unet":
        hook.remove()
    assert footprint(pipe.unet) == before


def test_a_copy_has_the_settings_and_saving_is_refused(pipe, tmp_path):
    guider = ea.WeakPassGuidance(mix=SoftPAG(0.5), guidance_scale=3.0)
    copied = guider.new(weak_guidance_scale=1.5)
    assert copied.mix == SoftPAG(0.5) and copied.guidance_scale == 3.0 and copied.weak_guidance_scale == 1.5
    assert "weak_guidance_scale" in str(guider.config) and guider.get_state()["num_conditions"] == 3
    for save in (guider.save_pretrained, guider.save_config):
        with pytest.raises(ValueError, match="a policy or a mix cannot be saved"):
            save(tmp_path)


def test_what_is_refused(pipe):
    with pytest.raises(ValueError, match="mix, scale: expected at least one of them"):
        ea.WeakPassGuidance()
    with pytest.raises(ValueError, match="mix: expected one for all samples"):
        ea.WeakPassGuidance(mix=NAG())
    with pytest.raises(ValueError, match="scale: expected one for all samples"):
        ea.WeakPassGuidance(scale=OfBranch(Constant(0.5), "uncond"))
    with pytest.raises(ValueError, match="matches none of the layers"):
        generate(pipe, ea.WeakPassGuidance(mix=SoftPAG(layers="nowhere")))
    with pytest.raises(ValueError, match="of='sigma': it is not known"):
        generate(pipe, ea.WeakPassGuidance(scale=Schedule(DyPE(exponent=0), (5.0, 0.1))))
    guider = ea.WeakPassGuidance(mix=SoftPAG())
    guider.set_state(0, 3, None)
    for _ in range(2):
        guider.prepare_models(torch.nn.Linear(2, 2))
    with pytest.raises(Unroutable, match="Linear"):
        guider.prepare_models(torch.nn.Linear(2, 2))
