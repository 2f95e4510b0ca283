"""`evaluate scale`: image metrics of a pipeline at several sizes under several scale policies.

Each stage keeps its runs in a separate folder, so metrics can be added to images that exist:

    images/    the images, a run for each batch
    real/      features of the real images
    features/  features of the images
    clip/      cosine of each image and its prompt
    loss/      denoising losses of known scenes
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from entropy_attn.evaluation import distances
from entropy_attn.evaluation.denoising import STEPS, denoising_losses, scenes_of_training_size
from entropy_attn.evaluation.features import Features, names_hash, open_image, real_files
from entropy_attn.evaluation.sampling import Arm, batches, load_image, sample_arm, save_images
from entropy_attn.evaluation.scale_metrics import Row, distance_rows, loss_rows, score_rows, with_holm
from entropy_attn.evaluation.scale_plan import Part, ScalePlan
from entropy_attn.evaluation.shapes_captions import shapes_scores
from entropy_attn.pipelines import call_options, check_size
from entropy_attn.pipelines.clip import Clip
from entropy_attn.profiling.layers import measured_layers
from entropy_attn.profiling.plan import size_name
from entropy_attn.runs.folder import Make, OnRun, RunFolder
from entropy_attn.runs.processes import ALONE, Processes
from entropy_attn.shapes.scenes import parse_caption
from entropy_attn.validation import expected

# {(size, policy, prompt, seed): {metric: score}}
ImageScores = dict[tuple[tuple[int, int], str, int, int], dict[str, float]]
REAL_BATCH, SCENE_BATCH = 32, 8


@dataclass(frozen=True)
class Metrics:
    """What is measured of the images.

    Attributes:
        real: folder of real images, for KID, FID, precision and recall; None for none of them.
        features: the network for these.
        clip: the model for the cosine of image and prompt; None for none.
        shapes: score with the exact checker of shapes; prompts are captions of shapes.
        scenes: number of scenes for the denoising loss, with `shapes`; 0 for none.
    """

    real: Path | None = None
    features: Features | None = None
    clip: Clip | None = None
    shapes: bool = False
    scenes: int = 0

    def __post_init__(self) -> None:
        if (self.real is None) != (self.features is None):
            given, missing = ("features", "real") if self.real is None else ("real", "features")
            raise ValueError(f"{missing}: expected it together with {given}, got None")


@dataclass
class ScaleResult:
    """What was measured.

    Attributes:
        plan: what was compared.
        rows: the rows of scale.csv.
        images: the rows of images.csv.
        notes: what is not given and why.
        stores: {stage: its folder of runs}.
    """

    plan: ScalePlan
    rows: list[Row] = field(default_factory=list)
    images: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stores: dict[str, RunFolder] = field(default_factory=dict)


def evaluate_scale(
    pipe: Any,
    plan: ScalePlan,
    metrics: Metrics,
    out: Path,
    on_run: OnRun | None = None,
    processes: Processes = ALONE,
) -> ScaleResult:
    """Make what is missing in the folder, and compute all metrics.

    Args:
        pipe: a diffusers pipeline.
        plan: what is compared.
        metrics: what is measured.
        out: the folder; what another call has finished there is not made again.
        on_run: called for each run that was there, and after each run of this process, with "stage: name", its seconds
            (None if it was there), the number of finished runs, the number of runs.
        processes: those that share the runs; each makes the same call, with its own pipeline, and gets the result.

    Raises:
        ValueError: the pipeline cannot make an image of the plan, or the folder has another evaluation.
        ImportError: a package for the metrics is missing.
    """
    check(pipe, plan, metrics)
    result, parts = ScaleResult(plan), plan.parts()

    def make(
        stage: str,
        facts: Mapping[str, Any],
        names: Iterable[str],
        maker: Make,
        cost: Callable[[str], int] | None = None,
    ) -> RunFolder:
        store = result.stores[stage] = RunFolder(out / stage, facts, list(names), processes=processes)
        seen = None if on_run is None else lambda name, *rest: on_run(f"{stage}: {name}", *rest)
        store.complete(maker, seen, cost)
        return store

    images = make("images", plan.described(), parts, lambda name, folder: _sample(pipe, plan, parts[name], folder),
                  cost=lambda name: math.prod(parts[name].size) * len(parts[name].indices))  # fmt: skip
    scores: ImageScores = {key: {} for key in _image_keys(plan)}
    if metrics.shapes:
        _check_shapes(plan, parts, images, scores)
    if metrics.clip is not None:
        clip = metrics.clip
        make("clip", {"images": images.hash, "clip": _identity(clip)}, parts,
             lambda name, folder: _clip_scores(clip, plan, parts[name], images.path(name), folder))  # fmt: skip
        for name, part in parts.items():
            for index, cosine in result.stores["clip"].read(name)["cosines"].items():
                scores[part.size, part.policy, int(index), part.seed]["CLIP cosine"] = cosine
        if cut := clip.cut(plan.prompts):
            result.notes.append(
                f"CLIP reads at most {clip.length} tokens, so {cut} of {len(plan.prompts)} prompts are cut"
            )
    if metrics.real is not None and metrics.features is not None:
        files, network = real_files(metrics.real), metrics.features
        facts = {**network.described(), "real": names_hash(files, metrics.real), "real_images": len(files)}
        lots = {f"{lot[0]:06d}": lot for lot in batches(range(len(files)), REAL_BATCH)}
        make("real", facts, lots,
             lambda name, folder: _save(folder, network([open_image(files[i]) for i in lots[name]])))  # fmt: skip
        make("features", {**network.described(), "images": images.hash}, parts,
             lambda name, folder: _save(folder, network(_images_of(images.path(name), parts[name]))))  # fmt: skip
        _add_distances(result, parts)
    _add_scores(result, scores)
    if metrics.scenes:
        _add_losses(pipe, plan, metrics.scenes, make, result)
    order = {(size_name(size), policy): None for size in plan.sizes for policy in plan.policies}
    ranks = {key: number for number, key in enumerate(order)}
    result.rows = with_holm(sorted(result.rows, key=lambda row: ranks[row["size"], row["policy"]]))
    result.notes = list(dict.fromkeys(result.notes))
    return result


def check(pipe: Any, plan: ScalePlan, metrics: Metrics) -> None:
    """Refuse what would fail later."""
    settings = plan.settings
    call_options(pipe, plan.prompts, guidance_scale=settings.guidance_scale, negative_prompt=settings.negative_prompt,
                 arguments=settings.arguments)  # fmt: skip
    for size in plan.sizes:
        check_size(pipe, size, plan.batch)
    measured_layers(pipe, list(plan.sizes), plan.policies, settings.layers)
    if metrics.shapes:
        for prompt in plan.prompts:
            parse_caption(prompt)
    if metrics.scenes and not metrics.shapes:
        raise ValueError(expected("scenes", "0 without shapes, because the scenes are those of shapes", metrics.scenes))
    if metrics.scenes == 1:
        raise ValueError(expected("scenes", "0, or at least 2 for an interval", 1))
    if metrics.real is not None:
        real_files(metrics.real)
        distances.check_installed()


def _image_keys(plan: ScalePlan) -> list[tuple[tuple[int, int], str, int, int]]:
    return [(size, policy, index, seed) for size in plan.sizes for policy in plan.policies
            for index in range(len(plan.prompts)) for seed in plan.seeds]  # fmt: skip


def _sample(pipe: Any, plan: ScalePlan, part: Part, folder: Path) -> None:
    prompts = {index: plan.prompts[index] for index in part.indices}
    arm = Arm(part.policy, plan.policies[part.policy])
    save_images(sample_arm(pipe, prompts, arm, size=part.size, seed=part.seed, settings=plan.settings), folder)


def _images_of(folder: Path, part: Part) -> list[Any]:
    return [load_image(folder, index) for index in part.indices]


def _save(folder: Path, features: np.ndarray) -> None:
    np.save(folder / "features.npy", features)


def _clip_scores(clip: Clip, plan: ScalePlan, part: Part, images: Path, folder: Path) -> Mapping[str, Any]:
    found = clip.images(_images_of(images, part))
    texts = clip.texts([plan.prompts[index] for index in part.indices])
    cosines = (found * texts).sum(-1).tolist()
    return {"cosines": {str(index): cosine for index, cosine in zip(part.indices, cosines, strict=True)}}


def _identity(clip: Clip) -> str:
    """Name and shapes of the model: two folders of the same model are the same."""
    config = json.loads((clip.folder / "config.json").read_text(encoding="utf-8"))
    weights = sum(float(parameter.detach().double().sum()) for parameter in clip.model.parameters())
    return f"{clip.folder.name}, {config.get('model_type')}, sum of weights {weights:.6g}"


def _check_shapes(plan: ScalePlan, parts: Mapping[str, Part], images: RunFolder, scores: ImageScores) -> None:
    for name, part in parts.items():
        for index in part.indices:
            found = shapes_scores(load_image(images.path(name), index), plan.prompts[index])
            scores[part.size, part.policy, index, part.seed] |= found


def _add_scores(result: ScaleResult, scores: ImageScores) -> None:
    plan = result.plan
    files = {
        (part.size, part.policy, index, part.seed): f"images/runs/{name}/{index:06d}.png"
        for name, part in plan.parts().items()
        for index in part.indices
    }
    for (size, policy, index, seed), found in scores.items():
        keys = {"size": size_name(size), "policy": policy, "prompt": index, "seed": seed}
        result.images.append({**keys, "file": files[size, policy, index, seed], **found})
    for size in plan.sizes:
        of_size = {
            policy: {key[2:]: found for key, found in scores.items() if key[:2] == (size, policy)}
            for policy in plan.policies
        }
        result.rows += score_rows(size_name(size), of_size, str(plan.baseline))


def _add_distances(result: ScaleResult, parts: Mapping[str, Part]) -> None:
    plan, store, real = result.plan, result.stores["features"], result.stores["real"]
    of_real = np.concatenate([np.load(real.path(name) / "features.npy") for name in real.runs])
    for size in plan.sizes:
        found: dict[str, np.ndarray] = {}
        prompts: list[int] = []
        for policy in plan.policies:
            chosen = [(name, part) for name, part in parts.items() if (part.size, part.policy) == (size, policy)]
            found[policy] = np.concatenate([np.load(store.path(name) / "features.npy") for name, _ in chosen])
            prompts = [index for _, part in chosen for index in part.indices]
        rows, notes = distance_rows(size_name(size), of_real, found, prompts, str(plan.baseline))
        result.rows += rows
        result.notes += notes


def _add_losses(pipe: Any, plan: ScalePlan, scenes: int, make: Any, result: ScaleResult) -> None:
    lots = {f"{size_name(size)}-{lot[0]:06d}": (size, lot)
            for size in plan.sizes for lot in batches(range(scenes), SCENE_BATCH)}  # fmt: skip
    described = plan.described()
    shared = ("sizes", "policies", "layers", *plan.about)
    facts = {**{name: described[name] for name in shared}, "scenes": scenes, "loss_steps": list(STEPS)}
    policies = list(plan.policies)

    def losses(name: str, folder: Path) -> None:
        size, lot = lots[name]
        captions, images = scenes_of_training_size(pipe, size, scenes)
        chosen = slice(lot[0], lot[-1] + 1)
        found = denoising_losses(pipe, plan.policies, captions[chosen], images[chosen], first=lot[0])
        np.save(folder / "losses.npy", np.stack([found[policy] for policy in policies]))

    store = make("loss", facts, lots, losses, cost=lambda name: math.prod(lots[name][0]))
    for size in plan.sizes:
        chosen = [np.load(store.path(name) / "losses.npy") for name, (of, _) in lots.items() if of == size]
        of_policy = dict(zip(policies, np.concatenate(chosen, axis=-1), strict=True))
        result.rows += loss_rows(size_name(size), of_policy, STEPS, str(plan.baseline))
