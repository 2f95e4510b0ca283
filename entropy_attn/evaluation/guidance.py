"""`evaluate guidance`: methods of guidance beside their controls, by the metrics of T-SAM's tables.

Each stage keeps its runs in a folder of its own, so metrics can be added to images that exist:

    images/    the images, a run for each batch
    clip/      similarities with the prompt and with its objects
    captions/  captions of the images, and their similarity with the prompt
    answers/   answers to the questions about the images
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entropy_attn.evaluation.guidance_metrics import Row, mean_rows, repair_rows
from entropy_attn.evaluation.guidance_plan import OFF, GuidancePlan, Part
from entropy_attn.evaluation.methods import WordsOf
from entropy_attn.evaluation.metrics.clip import Similarities
from entropy_attn.evaluation.metrics.questions import Question, judged
from entropy_attn.evaluation.sampling import load_image, sample_arm, save_images
from entropy_attn.evaluation.shapes_captions import shapes_scores
from entropy_attn.pipelines import call_options, check_guided, check_size
from entropy_attn.pipelines.captioner import Captioner
from entropy_attn.pipelines.vqa import VQA, SentenceEncoder
from entropy_attn.prompts import Text
from entropy_attn.runs.folder import Make, OnRun, RunFolder
from entropy_attn.runs.processes import ALONE, Processes
from entropy_attn.shapes.scenes import parse_caption
from entropy_attn.validation import expected

FULL, MINIMUM, TEXT, TIFA = "CLIP full prompt", "CLIP minimum object", "text-text", "TIFA"
SHAPES_METRICS = ("presence", "binding", "exact count")


@dataclass(frozen=True)
class Metrics:
    """What is measured of the images.

    Attributes:
        shapes: score with the exact checker of shapes; prompts are captions of shapes.
        clip: similarities by CLIP; None for none.
        captioner: captions for the text-text similarity, with `clip`; None for none.
        questions: {id of a prompt: questions about its image}; empty for none.
        vqa: answers the questions.
        encoder: finds the choice that is closest to an answer; None needs an exact match.
        about: {stage: facts of its networks}, which the parts of an evaluation must have in common.
    """

    shapes: bool = False
    clip: Similarities | None = None
    captioner: Captioner | None = None
    questions: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    vqa: VQA | None = None
    encoder: SentenceEncoder | None = None
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.captioner is not None and self.clip is None:
            raise ValueError(expected("clip", "a CLIP network with captioner, which compares its captions", None))
        if bool(self.questions) != (self.vqa is not None):
            given, missing = ("vqa", "questions") if self.vqa is not None else ("questions", "vqa")
            raise ValueError(f"{missing}: expected it together with {given}, got none")
        if not (self.shapes or self.clip or self.vqa):
            raise ValueError(expected("metrics", "clip, questions with vqa, or shapes", "none of them"))


@dataclass
class GuidanceResult:
    """What was measured.

    Attributes:
        plan: what was compared.
        rows: the rows of guidance.csv.
        repairs: the rows of repairs.csv.
        images: the rows of images.csv.
        kinds: the rows of questions.csv: accuracy by kind of question.
        notes: what is not given and why.
        stores: {stage: its folder of runs}.
    """

    plan: GuidancePlan
    rows: list[Row] = field(default_factory=list)
    repairs: list[Row] = field(default_factory=list)
    images: list[Row] = field(default_factory=list)
    kinds: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stores: dict[str, RunFolder] = field(default_factory=dict)


def evaluate_guidance(
    pipe: Any,
    plan: GuidancePlan,
    metrics: Metrics,
    out: Path,
    words_of: WordsOf | None = None,
    on_run: OnRun | None = None,
    processes: Processes = ALONE,
) -> GuidanceResult:
    """Make what is missing in the folder, and compute all metrics.

    Args:
        pipe: a diffusers pipeline.
        plan: what is compared.
        metrics: what is measured.
        out: the folder; what another call has finished there is not made again.
        words_of: the words that the methods get; they are looked up in every prompt before any work.
        on_run: called for each run that was there, and after each run of this process, with "stage: name", its seconds
            (None if it was there), the number of finished runs, the number of runs.
        processes: those that share the runs; each makes the same call, with its own pipeline, and gets the result.

    Raises:
        ValueError: the pipeline cannot be guided or make an image of the plan, a prompt lacks what a metric or a method
            needs, or the folder has another evaluation.
        ImportError: a package is missing.
    """
    check(pipe, plan, metrics, words_of)
    result, parts = GuidanceResult(plan), plan.parts()
    scores: dict[str, dict[tuple[int, int], dict[str, float]]] = {arm: {} for arm in plan.arms}
    for part in parts.values():
        scores[part.arm] |= {(index, part.seed): {} for index in part.indices}

    def complete(
        stage: str, facts: Mapping[str, Any], make: Make, cost: Callable[[str], Any] | None = None
    ) -> RunFolder:
        store = result.stores[stage] = RunFolder(out / stage, facts, list(parts), processes=processes)
        seen = None if on_run is None else lambda name, *rest: on_run(f"{stage}: {name}", *rest)
        store.complete(make, seen, cost)
        return store

    images = complete("images", plan.described(), lambda name, folder: _sample(pipe, plan, parts[name], folder),
                      cost=lambda name: (plan.is_guided(parts[name]), len(parts[name].indices)))  # fmt: skip

    def add(stage: str, maker: Callable[[Part, list[Any]], Mapping[int, Any]]) -> dict[str, dict[str, Any]]:
        """Complete a stage that reads images, and return what it found: {run: {index: found}}."""

        def measure(name: str, _: Path) -> Mapping[str, Any]:
            part = parts[name]
            found = maker(part, [load_image(images.path(name), index) for index in part.indices])
            return {"found": {str(index): value for index, value in found.items()}}

        store = complete(stage, {"images": images.hash, **metrics.about.get(stage, {})}, measure)
        return {name: store.read(name)["found"] for name in parts}

    def join(found: Mapping[str, Mapping[str, Any]], values: Callable[[Any], Mapping[str, float]]) -> None:
        for name, each in found.items():
            part = parts[name]
            for index, value in each.items():
                scores[part.arm][int(index), part.seed] |= values(value)

    if metrics.shapes:
        for name, part in parts.items():
            for index in part.indices:
                found = shapes_scores(load_image(images.path(name), index), plan.prompts.items[index].text)
                scores[part.arm][index, part.seed] |= {metric: found[metric] for metric in SHAPES_METRICS}
    if metrics.clip is not None:
        similarities = metrics.clip
        join(add("clip", lambda part, drawn: _similarities(plan, similarities, part, drawn)), dict)
        _note_clip(result, similarities)
    if metrics.clip is not None and metrics.captioner is not None:
        similarities, captioner = metrics.clip, metrics.captioner
        join(
            add("captions", lambda part, drawn: _captions(plan, similarities, captioner, part, drawn)),
            lambda value: {TEXT: value[TEXT]},
        )
    if metrics.vqa is not None:
        answers = add("answers", lambda part, drawn: _answers(plan, metrics, part, drawn))
        join(answers, _tifa)
        result.kinds = _kinds(answers, parts)
        asked = sum(item.id in metrics.questions for item in plan.prompts.items)
        result.notes.append(f"TIFA: there are questions for {asked} of {len(plan.prompts)} prompts.")
        if metrics.encoder is None:
            result.notes.append(
                "TIFA: an answer that is none of the choices counts as wrong, because no encoder of sentences was "
                "given to map it to the closest one; so scores are lower than TIFA's."
            )
    _finish(result, scores)
    return result


def check(pipe: Any, plan: GuidancePlan, metrics: Metrics, words_of: WordsOf | None) -> None:
    """Refuse what would fail later."""
    texts, settings = plan.prompts.texts, plan.settings
    check_guided(pipe)
    call_options(pipe, texts, guidance_scale=settings.guidance_scale, negative_prompt=settings.negative_prompt,
                 arguments=settings.arguments)  # fmt: skip
    check_size(pipe, plan.size, plan.batch)
    for name, arm in plan.arms.items():
        if arm.guidance is not None and not any(step < settings.steps for step in arm.guidance.steps):
            raise ValueError(f"guidance: expected steps below {settings.steps}, got none in {name!r}")
    for text in texts:
        if metrics.shapes:
            parse_caption(text)
        if words_of is not None:
            words_of(Text(text, pipe.tokenizer))


def _sample(pipe: Any, plan: GuidancePlan, part: Part, folder: Path) -> None:
    prompts = {index: plan.prompts.items[index].text for index in part.indices}
    save_images(
        sample_arm(pipe, prompts, plan.arm(part), size=plan.size, seed=part.seed, settings=plan.settings), folder
    )


def _similarities(plan: GuidancePlan, clip: Similarities, part: Part, drawn: list[Any]) -> dict[int, dict[str, float]]:
    vectors, items = clip.clip.images(drawn), [plan.prompts.items[index] for index in part.indices]
    found = {
        index: {FULL: value}
        for index, value in zip(part.indices, clip.full_prompt(vectors, [i.text for i in items]), strict=True)
    }
    for index, vector, item in zip(part.indices, vectors, items, strict=True):
        if len(item.objects) > 1:
            found[index][MINIMUM] = clip.minimum_object(vector[None], [item.objects])[0]
    return found


def _captions(
    plan: GuidancePlan, clip: Similarities, captioner: Captioner, part: Part, drawn: list[Any]
) -> dict[int, dict[str, Any]]:
    captions = captioner.captions(drawn)
    values = clip.text_to_text(captions, [plan.prompts.items[index].text for index in part.indices])
    return {
        index: {"caption": caption, TEXT: value}
        for index, caption, value in zip(part.indices, captions, values, strict=True)
    }


def _answers(plan: GuidancePlan, metrics: Metrics, part: Part, drawn: list[Any]) -> dict[int, list[dict[str, Any]]]:
    vqa, found = metrics.vqa, {}
    assert vqa is not None
    for index, image in zip(part.indices, drawn, strict=True):
        questions = metrics.questions.get(plan.prompts.items[index].id, ())
        judgements = [(q, judged(vqa.answer(image, q.question), q, metrics.encoder)) for q in questions]
        found[index] = [
            {"question": q.question, "kind": q.kind, "free": answer.free, "choice": answer.choice,
             "right": int(answer.right)}
            for q, answer in judgements
        ]  # fmt: skip
    return found


def _tifa(answers: list[dict[str, Any]]) -> dict[str, float]:
    """The share of right answers; nothing for a prompt without questions."""
    return {TIFA: sum(each["right"] for each in answers) / len(answers)} if answers else {}


def _kinds(answers: Mapping[str, Mapping[str, Any]], parts: Mapping[str, Part]) -> list[Row]:
    counts: dict[tuple[str, str], list[int]] = {}
    for name, found in answers.items():
        for each in (answer for of_image in found.values() for answer in of_image):
            counts.setdefault((parts[name].arm, each["kind"]), []).append(each["right"])
    return [
        {"arm": arm, "kind": kind, "questions": len(right), "right": sum(right), "accuracy": sum(right) / len(right)}
        for (arm, kind), right in sorted(counts.items(), key=lambda item: item[0][1])
    ]


def _note_clip(result: GuidanceResult, clip: Similarities) -> None:
    prompts = result.plan.prompts
    named = sum(len(item.objects) > 1 for item in prompts.items)
    source = f", from {prompts.objects_from}" if prompts.objects_from else ""
    result.notes.append(f"{MINIMUM}: for {named} of {len(prompts)} prompts, which name two objects or more{source}.")
    result.notes.append(
        f"CLIP similarities are cosines; each prompt is embedded in {len(clip.templates)} template(s)."
        + ("" if len(clip.templates) > 1 else " The papers use 80 templates, so values differ a little.")
    )
    if cut := clip.clip.cut(prompts.texts):
        result.notes.append(f"CLIP reads at most {clip.clip.length} tokens: {cut} of {len(prompts)} prompts are cut.")


def _finish(result: GuidanceResult, scores: dict[str, dict[tuple[int, int], dict[str, float]]]) -> None:
    result.rows = mean_rows(scores, OFF)
    result.repairs = repair_rows(scores, OFF)
    metrics = list(dict.fromkeys(row["metric"] for row in result.rows))
    for name, part in result.plan.parts().items():
        for index in part.indices:
            item = result.plan.prompts.items[index]
            keys = {"arm": part.arm, "prompt": index, "id": item.id, "category": item.category, "seed": part.seed}
            found = scores[part.arm][index, part.seed]
            file = {"file": f"images/runs/{name}/{index:06d}.png"}
            result.images.append({**keys, **file, **{metric: found.get(metric) for metric in metrics}})
