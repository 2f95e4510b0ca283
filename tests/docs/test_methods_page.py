"""docs/methods.md: every block runs, and what it routes or guides generates, on tiny pipelines of SD and SD3."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn.integrations.diffusers.handle import Handle
from tests.recorders.test_joint_maps import SD3, generate, sd3
from tests.support.markdown import blocks
from tests.support.saved_models import tiny_model

__all__ = ["tiny_model"]

PAGE = "docs/methods.md"
SMALL = {"height": 32, "width": 48, "num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture
def routed(monkeypatch) -> list[Handle]:
    """The handles that a block makes."""
    made: list[Handle] = []
    plain = ea.apply
    monkeypatch.setattr(ea, "apply", lambda *args, **options: (made.append(plain(*args, **options)), made[-1])[1])
    return made


def small(pipe: Any) -> Any:
    """A pipeline that makes small images of two steps."""
    pipe.set_progress_bar_config(disable=True)
    call = type(pipe).__call__

    class Small(type(pipe)):  # type: ignore[misc]
        def __call__(self, *args: Any, **options: Any) -> Any:
            return call(self, *args, **SMALL | options)

    pipe.__class__ = Small
    return pipe


def test_every_block_runs_and_generates(tiny_model, routed):
    from diffusers import StableDiffusionPipeline

    pipe, joint = small(StableDiffusionPipeline.from_pretrained(tiny_model)), sd3()
    scope: dict[str, Any] = {"pipe": pipe, "sd3": joint}
    found = blocks(PAGE, "python")
    assert len(found) >= 15
    for block in found:
        exec(compile(block.text, block.place, "exec"), scope)
        for handle in routed:
            if handle.active:
                if handle.denoiser is joint.transformer:
                    generate(joint, "a b", SD3[1])
                else:
                    pipe("a fox in the snow")
                handle.remove()
        routed.clear()
