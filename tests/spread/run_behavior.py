"""Order of `apply` and `enable_parallelism`, removal, refusals, different noise, and every model that can be spread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

import entropy_attn as ea
from tests.spread.worker import Report, case, difference, flux, spread, start
from tests.support.tiny_pipelines import PIPELINES

LOGN = ea.scale.LogN(train_tokens=16)


def order(report: Report, world: int) -> None:
    model, call = flux()()
    plain = model(**call)[0]
    with ea.apply(model, scale=LOGN):
        routed = model(**call)[0]
    recorder = ea.EntropyRecorder()
    handle = ea.apply(model, scale=LOGN, record=recorder)
    spread(model, ulysses_degree=world)
    out = model(**call)[0]
    if dist.get_rank() == 0:
        recorder.to_columns()  # reading waits for nobody
    handle.remove()
    removed = model(**call)[0]
    report.add(
        "apply, then enable_parallelism",
        out=difference(out, routed),
        removed=difference(removed, plain),
        routed=-difference(routed, plain),
        calls=len(recorder),
    )
    with ea.apply(model, scale=None):
        report.add("enable_parallelism, then apply", out=difference(model(**call)[0], plain))


def refusals(report: Report, rank: int, world: int) -> None:
    def said(work: Callable[[], Any]) -> str:
        try:
            work()
        except (RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    def attempt(config: dict[str, Any], heads: int = 4, record: Any = None, **options: Any) -> str:
        model, call = flux(heads=heads)()
        spread(model, **config)
        with ea.apply(model, scale=LOGN, record=record):
            return said(lambda: model(**call, **options))

    mask = {"joint_attention_kwargs": {"attention_mask": torch.ones(2, 1, 1, 72 // world, dtype=torch.bool)}}
    rows = {"joint_attention_kwargs": {"attention_mask": torch.ones(2, 1, 72 // world, 72 // world, dtype=torch.bool)}}
    ulysses, ring = {"ulysses_degree": world}, {"ring_degree": world}
    report.say("a mask in a ring", attempt(ring, **mask))
    report.say(
        "a mask in Ulysses", attempt(ulysses, record=[ea.EntropyRecorder(), ea.MapRecorder(tokens=(1,))], **mask)
    )
    report.say("a mask of rows", attempt(ulysses, **rows))
    report.say("heads", attempt(ulysses, heads=3))
    model, call = flux()()
    spread(model, **ulysses)
    model.set_attention_backend("_native_flash")
    with ea.apply(model, scale=LOGN):
        report.say("a picked kernel", said(lambda: model(**call)))
    model.set_attention_backend("native")

    noise = torch.Generator().manual_seed(rank)
    other = call | {"hidden_states": torch.randn(call["hidden_states"].shape, dtype=torch.float64, generator=noise)}
    with ea.apply(model, scale=LOGN):
        report.say("different noise", said(lambda: model(**other)))
        report.say("same noise again", said(lambda: model(**call)))
    with ea.apply(model, scale=LOGN, record=ea.EntropyRecorder() if rank else None):
        report.say("different recorders", said(lambda: model(**call)))
    with ea.apply(model, scale=None, mix=ea.mix.SoftPAG()):
        report.say("a mix", said(lambda: model(**call)))
    with ea.apply(model, scale=ea.scale.Fixed(0.1 + rank)):
        report.say("different scales", said(lambda: model(**call)))


def pipeline(report: Report, world: int) -> None:
    """Two steps of a whole pipeline, with a call for the prompt and one for the negative prompt in each."""
    found = []
    for config in (None, {"ulysses_degree": world}, {"ring_degree": world}):
        pipe = PIPELINES["flux"].make()
        entropy, maps = ea.EntropyRecorder(), ea.MapRecorder(tokens=(1, 2))
        if config:
            spread(pipe.transformer, **config)
        with ea.apply(pipe, record=[entropy, maps]):
            out = PIPELINES["flux"].run(pipe)
        found.append((out, entropy.to_columns(), maps.maps()))
    (out, columns, words), *others = found
    for mode, (other_out, other_columns, other_words) in zip(("ulysses", "ring"), others, strict=True):
        same = all(columns[name] == other_columns[name] for name in ("branch", "step", "layer", "scale", "seqlen_k"))
        report.add(
            f"pipeline, {mode}",
            out=difference(out, other_out),
            entropy=difference(columns["mean"], other_columns["mean"]),
            map=difference(words, other_words),
            different=not same or set(columns["branch"]) != {"cond", "uncond"} or max(columns["step"]) != 1,
        )


def compiled(report: Report, world: int) -> None:
    """Layers of a spread sequence stay outside of the graphs."""
    model, call = flux()()
    with ea.apply(model, scale=LOGN):
        expected = model(**call)[0]
    spread(model, ulysses_degree=world)
    with ea.apply(model, scale=LOGN):
        report.add("compiled", out=difference(torch.compile(model, backend="eager")(**call)[0], expected))


def models(report: Report, world: int) -> None:
    for name in ("flux", "flux2", "qwen", "wan", "wan-i2v", "ltx"):
        for mode in ("ulysses", "ring"):
            if (name, mode) in (("qwen", "ring"), ("ltx", "ring")):
                continue  # they have masks
            found = []
            for config in (None, {f"{mode}_degree": world, "convert_to_fp32": False}):
                model, call = case(name)()
                if config:
                    spread(model, **config)
                recorder, seen = ea.EntropyRecorder(), []

                def policy(info: ea.CallInfo, seen: list = seen) -> float:
                    seen.append((info.layer, info.kind, info.seqlen_q, info.seqlen_k, info.text_tokens))
                    return 0.9 * info.head_dim**-0.5

                with ea.apply(model, scale=policy, record=recorder, layers="all"):
                    out = model(**call)[0]
                found.append((out, recorder.to_columns(), seen))
            (out, columns, seen), (other_out, other_columns, other_seen) = found
            statistics = [difference(columns[key], other_columns[key]) for key in ("mean", "std", "min", "max")]
            report.add(
                f"{name}, {mode}",
                out=difference(out, other_out),
                entropy=max(statistics),
                different=seen != other_seen or columns["seqlen_q"] != other_columns["seqlen_q"],
            )


def main() -> None:
    rank, world = start()
    report = Report()
    with torch.no_grad():
        order(report, world)
        refusals(report, rank, world)
        models(report, world)
        pipeline(report, world)
        compiled(report, world)
    report.finish()


if __name__ == "__main__":
    main()
