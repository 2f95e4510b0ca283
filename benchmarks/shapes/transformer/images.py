"""The scored images of an evaluation, kept in a folder, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from entropy_attn.evaluation.sampling import batches
from entropy_attn.evaluation.shapes_captions import shapes_scores
from entropy_attn.pipelines import sample
from entropy_attn.pipelines.sizes import call_parameters
from entropy_attn.profiling.plan import size_name
from entropy_attn.runs.folder import RunFolder, slugs

BATCH = 20
LONGEST = 32  # tokens; the pipeline of Lumina 2 pads captions to 256, which changes nothing and takes half of the time

Size = tuple[int, int]


class Sampler:
    """Images of captions at fixed settings. The noise of a caption is that of its seed, under every policy.

    Raises:
        ValueError: `positions` is "interpolated", and the model is not a Lumina 2.
    """

    def __init__(self, model: Path, steps: int, guidance_scale: float, positions: str = "extrapolated"):
        from diffusers import DiffusionPipeline

        from entropy_attn.integrations.diffusers.private import dtype_argument

        self.pipe = DiffusionPipeline.from_pretrained(model, **dtype_argument(torch.float32))
        self.pipe.set_progress_bar_config(disable=True)
        if positions == "interpolated":
            from entropy_attn.shapes.positions import interpolate_positions

            interpolate_positions(getattr(self.pipe, "transformer", None))
        self.steps, self.guidance_scale = steps, guidance_scale
        takes_length = "max_sequence_length" in call_parameters(self.pipe)
        self.arguments: dict[str, Any] = {"max_sequence_length": LONGEST} if takes_length else {}

    def __call__(
        self, captions: list[str], seeds: list[int], size: Size, policy: Any, steps: int | None = None, **arguments: Any
    ) -> list[Any]:
        return sample(
            self.pipe, captions, size=size, scale=policy, seed=seeds, steps=steps or self.steps,
            guidance_scale=self.guidance_scale, arguments=self.arguments | arguments,
        )  # fmt: skip


class Images:
    """A row of scores for each image, in folders of finished batches; missing batches are made.

    Captions are generated in fixed batches, whatever is there already: a resumed run has the rows of one that was not
    stopped. `rows` are all that were asked for.

    Raises:
        ValueError: the folder holds images of another model, of other settings or of other captions.
    """

    def __init__(self, sampler: Sampler, out: Path, settings: dict[str, Any], policies: dict[str, Any]):
        self.sampler, self.out, self.settings, self.policies = sampler, out / "images", settings, policies
        self.rows: list[dict[str, Any]] = []

    def __call__(
        self, split: str, size: Size, name: str, captions: list[str], advance: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """A row for each caption, in their order; the seed of a caption is its number."""
        keys = {"split": split, "size": size_name(size), "policy": name}
        lots = {f"{lot[0]:06d}": lot for lot in batches(range(len(captions)), BATCH)}
        folder = f"{split}-{size_name(size)}-{slugs(self.policies)[name]}"
        store = RunFolder(self.out / folder, {**self.settings, **keys, "captions": captions}, list(lots))

        def make(run: str, _: Path) -> dict[str, Any]:
            texts = [captions[number] for number in lots[run]]
            images = self.sampler(texts, lots[run], size, self.policies[name])
            made = zip(texts, lots[run], images, strict=True)
            return {"rows": [{**keys, "caption": text, "seed": seed, **shapes_scores(image, text)}
                             for text, seed, image in made]}  # fmt: skip

        store.complete(make, lambda run, *_: advance(len(lots[run])))
        rows = [row for run in lots for row in store.read(run)["rows"]]
        self.rows += rows
        return rows


def digest(model: Path) -> str:
    """SHA-256 of the denoiser's weights."""
    files = sorted(file for part in ("transformer", "unet") for file in (model / part).glob("*.safetensors"))
    if not files:
        raise ValueError(f"model: expected a diffusers folder with the weights of a denoiser, got {str(model)!r}")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
