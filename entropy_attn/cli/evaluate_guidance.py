"""`entropy-attn evaluate guidance`: options in, files out; `entropy_attn.evaluation.guidance` evaluates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli.evaluate_options import EvaluateOptions, Sampled, is_embedded, kept
from entropy_attn.cli.loading import MAY_CHANGE, Loading
from entropy_attn.cli.option_groups import takes_options
from entropy_attn.cli.outputs import output_folder
from entropy_attn.cli.parsing import SIZE_HELP, check_at_least, parse_list, parse_method, parse_size
from entropy_attn.cli.progress import kept_in, run_progress
from entropy_attn.cli.refusals import refusals
from entropy_attn.cli.versions import versions

SHAPES_CAPTIONS = 60
SHAPES_METHOD = "tsam:alpha=2.5:steps=0..12"  # alpha by the number of latents: docs/guidance-measured.md
EXAMPLE = (
    "Examples:\n\n"
    "  entropy-attn evaluate guidance --limit 20 --out guidance\n\n"
    "  entropy-attn evaluate guidance --model ./stable-diffusion-v1-5 --prompts tifa_v1.0_text_inputs.json "
    "--guidance tsam:alpha=40 --steps 50 --clip ./clip-vit-base-patch16 --captioner ./blip-image-captioning-base "
    "--questions tifa_v1.0_question_answers.json --vqa ./blip-vqa-capfilt-large --choice-encoder ./all-mpnet-base-v2 "
    "--out tifa\n"
)


@dataclass(frozen=True)
class MetricOptions:
    """The fields are options of the command."""

    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP model in transformers' format.")] = None
    templates: Annotated[
        Path | None,
        typer.Option(help="File of sentences with {}, one a line, in which --clip embeds prompts. Default: {} alone."),
    ] = None
    captioner: Annotated[
        Path | None, typer.Option(help="Folder of a BLIP captioning model, for the text-text similarity; needs --clip.")
    ] = None
    questions: Annotated[Path | None, typer.Option(help="TIFA's file of questions and answers; needs --vqa.")] = None
    vqa: Annotated[
        Path | None, typer.Option(help="Folder of a BLIP or ViLT model that answers questions; needs --questions.")
    ] = None
    choice_encoder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a sentence encoder that maps answers to choices, as TIFA does. Without it an answer must "
            "be one of the choices."
        ),
    ] = None
    shapes: Annotated[
        bool | None,
        typer.Option(
            help="Score with the exact checker, and add the oracle map. Default: for the embedded model only."
        ),
    ] = None

    def check(self) -> None:
        """Refuse options that need others."""
        needs = (
            ("--templates", self.templates, "--clip", self.clip),
            ("--captioner", self.captioner, "--clip", self.clip),
            ("--questions", self.questions, "--vqa", self.vqa),
            ("--vqa", self.vqa, "--questions", self.questions),
            ("--choice-encoder", self.choice_encoder, "--vqa", self.vqa),
        )
        for option, given, needed, other in needs:
            if given is not None and other is None:
                raise ValueError(f"{option}: expected {needed} with it, got {option} alone")

    def load(self, prompts: Any, shapes: bool, device: str) -> Any:
        """The networks and questions."""
        from entropy_attn.evaluation.guidance import Metrics
        from entropy_attn.evaluation.metrics.clip import PLAIN, Similarities, read_templates
        from entropy_attn.evaluation.metrics.questions import read_questions
        from entropy_attn.pipelines.captioner import Captioner
        from entropy_attn.pipelines.clip import Clip
        from entropy_attn.pipelines.vqa import VQA, SentenceEncoder

        questions = {} if self.questions is None else read_questions(self.questions, prompts)
        templates = PLAIN if self.templates is None else read_templates(self.templates)
        similarities = None if self.clip is None else Similarities(Clip(self.clip, device), templates)
        networks = {"clip": _name(self.clip), "templates": list(templates)}
        asked = {key: [[q.question, *q.choices, q.answer] for q in each] for key, each in questions.items()}
        return Metrics(
            shapes=shapes,
            clip=similarities,
            captioner=None if self.captioner is None else Captioner(self.captioner, device),
            questions=questions,
            vqa=None if self.vqa is None else VQA(self.vqa, device),
            encoder=None if self.choice_encoder is None else SentenceEncoder(self.choice_encoder, device),
            about={
                "clip": networks,
                "captions": {**networks, "captioner": _name(self.captioner)},
                "answers": {"vqa": _name(self.vqa), "encoder": _name(self.choice_encoder), "questions": asked},
            },
        )


@takes_options(loading=Loading, options=EvaluateOptions, metric_options=MetricOptions)
def guidance(
    loading: Loading,
    options: EvaluateOptions,
    metric_options: MetricOptions,
    out: Annotated[Path, typer.Option(help="Folder for images and tables; created if missing.")] = Path("evaluation"),
    guidance: Annotated[
        list[str] | None,
        typer.Option(
            help="Methods to compare: tsam, attend-and-excite, conform, jedi or syngen, each with settings as in "
            f"'tsam:alpha=10:steps=0..12'; can be given several times. Default: tsam, for shapes {SHAPES_METHOD}."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompt set: TIFA's JSON, PartiPrompts' TSV, GenEval's JSONL, or one prompt a line. Default for "
            f"shapes: {SHAPES_CAPTIONS} captions."
        ),
    ] = None,
    prompt_format: Annotated[
        str | None, typer.Option(help="tifa, parti, geneval or lines. Default: recognized by the content.")
    ] = None,
    objects: Annotated[
        Path | None,
        typer.Option(
            help="JSON {prompt or id: [a phrase for each object]}, for the minimum-object similarity and for methods "
            "that need words. GenEval's file and captions of shapes have them."
        ),
    ] = None,
    split_at: Annotated[
        str | None,
        typer.Option(help="Instead of --objects: split every prompt at the first of these words, such as and,with."),
    ] = None,
    size: Annotated[str | None, typer.Option(help=f"Image size: {SIZE_HELP}. Default: the training size.")] = None,
    oracle_alpha: Annotated[
        float, typer.Option(help="With shapes: alpha of the oracle map, guided at the steps of the first method.")
    ] = 80.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows of the tables as JSON.")] = False,
) -> None:
    from entropy_attn.runs.processes import launched

    with kept_in(out, kept), refusals(loading, options.batch), launched() as processes:
        sampled = options.parse(loading.model)
        metric_options.check()
        shapes = is_embedded(loading.model) if metric_options.shapes is None else metric_options.shapes
        if objects is not None and split_at is not None:
            raise ValueError("--objects: expected it without --split-at, got both")
        found = _prompts(prompts, prompt_format, objects, split_at, shapes, sampled)
        texts = guidance or [SHAPES_METHOD if is_embedded(loading.model) else "tsam"]
        methods = {text: parse_method(text) for text in texts}
        if len(methods) < len(texts):
            raise ValueError(f"--guidance: expected different methods, got {', '.join(texts)}")
        check_at_least("--oracle-alpha", oracle_alpha, 0)
        pixels = None if size is None else parse_size(size)
        output_folder(out)
        evaluated = _run(loading, sampled, metric_options, found, methods, shapes, pixels, oracle_alpha, out, processes)
    if evaluated:
        _print(*evaluated, out, as_json)


guidance.__doc__ = (
    "Compare methods of guidance with their controls: CLIP similarities, captions, TIFA, on shapes the objects found."
    f"\n\n{EXAMPLE}"
)


def _prompts(
    path: Path | None,
    prompt_format: str | None,
    objects: Path | None,
    split_at: str | None,
    shapes: bool,
    sampled: Sampled,
) -> Any:
    """The prompts of the file, or the captions of the embedded model, with their objects where these are known."""
    from entropy_attn.evaluation.prompt_sets import read_objects, read_prompts, split_objects
    from entropy_attn.evaluation.shapes_captions import shapes_prompts, with_objects

    if path is None:
        if not shapes:
            raise ValueError("--prompts: expected a file, got none: only shapes has default prompts")
        found = shapes_prompts(SHAPES_CAPTIONS)
    else:
        found = read_prompts(path, prompt_format)
    sampled.prompts(found.texts)  # refuses a limit beyond them
    found = found.first(sampled.limit)
    if objects is not None:
        return read_objects(objects, found)
    if split_at is not None:
        return split_objects(found, parse_list("--split-at", split_at))
    return with_objects(found) if shapes else found


def _run(
    loading: Loading,
    sampled: Sampled,
    metric_options: MetricOptions,
    prompts: Any,
    methods: dict[str, Any],
    shapes: bool,
    size: tuple[int, int] | None,
    oracle_alpha: float,
    out: Path,
    processes: Any,
) -> tuple[Any, dict[str, Path], dict[str, Any]] | None:
    """The result, {name: path} of all files, and what it ran on; None except in the first process."""
    pipe, running_on = loading.load()
    from entropy_attn.evaluation.guidance import evaluate_guidance
    from entropy_attn.evaluation.guidance_plan import GuidancePlan, arms
    from entropy_attn.evaluation.guidance_report import write_report
    from entropy_attn.evaluation.methods import WordsOf, guidance_for, words_of_phrases, words_of_shapes
    from entropy_attn.evaluation.oracle_map import OracleMap
    from entropy_attn.guidance import TSAM
    from entropy_attn.pipelines import train_size

    words_of: WordsOf | None = None
    if shapes:
        words_of = words_of_shapes
    elif all(item.objects for item in prompts.items):
        words_of = words_of_phrases({item.text: item.objects for item in prompts.items})
    guided = {name: guidance_for(example, words_of) for name, example in methods.items()}
    oracle = None
    if shapes:
        first = next(iter(guided.values()))
        oracle = OracleMap(alpha=oracle_alpha, steps=first.steps)
    chosen, controls = arms(guided, oracle)
    about = {name: value for name, value in running_on.items() if name not in MAY_CHANGE}
    plan = GuidancePlan(
        prompts, chosen, controls, size or train_size(pipe), sampled.seeds, sampled.settings, sampled.batch,
        about | ({"oracle_alpha": oracle_alpha} if shapes else {}),
    )  # fmt: skip
    metrics = metric_options.load(prompts, shapes, running_on["device"])
    needs_words = any(not isinstance(example, TSAM) for example in methods.values())
    with run_progress() as (_, on_run):
        result = evaluate_guidance(pipe, plan, metrics, out, words_of if needs_words else None, on_run, processes)
    if not processes.is_first:
        return None
    title = Path(loading.model).name or loading.model
    head = {"device": running_on["device"], "dtype": running_on["dtype"]}
    return result, write_report(result, out, title, head), {**running_on, "versions": versions()}


def _print(result: Any, files: dict[str, Path], about: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        tables = {"rows": result.rows, "repairs": result.repairs, "questions": result.kinds}
        plain = {name: [_without_nan(row) for row in rows] for name, rows in tables.items()}
        print(json.dumps({**about, **result.plan.described(), **plain, "notes": result.notes,
                          "files": {name: str(path) for name, path in files.items()}}, indent=2))  # fmt: skip
        return
    print(files["page"].read_text(encoding="utf-8"))
    print(f"Written to {out.resolve()}: {', '.join(path.name for path in files.values())}")


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in row.items()}


def _name(folder: Path | None) -> str | None:
    return None if folder is None else folder.resolve().name
