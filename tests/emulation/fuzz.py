"""Random calls: lengths, head dims, strides with gaps, masks, dtypes, options, targets.

    python -m tests.emulation.fuzz --seed S --num N        on emulated cards
    python -m tests.emulation.fuzz --repro "target=sm_90 seqlen_q=5 ..."    one of them again
    python -m tests.emulation.fuzz --seed S --num N --on interpreter        (or: --on gpu) the same calls elsewhere

For a case that fails, the command that runs it again is printed. Triton's interpreter needs TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import dataclasses
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from entropy_attn.kernels.common.support import call_target, interpreting

from .cases import DTYPES, GRADS, LAYOUTS, MASKS, SCALES, Case, refused, run
from .tables import TARGETS

LENGTHS = (1, 2, 15, 16, 17, 31, 63, 64, 65, 77, 100, 127, 128, 129, 200, 256)
SOUND = {"ok", "refused"}
HEAD_DIMS = (16, 24, 32, 40, 64, 72, 80, 96, 128, 160, 256)


def work(case: Case) -> int:
    """Number of multiplications of a call, a measure of its run time."""
    one = case.batch * case.heads * case.seqlen_q * case.seqlen_k * (case.head_dim + case.head_dim_v)
    return one * (4 if case.grads else 1) * (4 if case.dtype == "fp32" else 1)


def draw(rng: random.Random, most: float = math.inf) -> Case:
    """A valid call with at most this much `work`; `refused` says whether the kernels support it."""
    case = _draw(rng)
    while work(case) > most:
        case = _draw(rng)
    return case


def _draw(rng: random.Random) -> Case:
    heads, group = rng.choice(((1, 1), (2, 1), (3, 1), (4, 2), (4, 4)))
    head_dim, length = rng.choice(HEAD_DIMS), rng.choice(LENGTHS)
    mask = rng.choice(("none", "none", *MASKS[1:]))
    start = rng.randrange(length)
    mapped = rng.random() < 0.3
    grads = (
        "+".join(n for n in GRADS if rng.random() < 0.5 and (mapped or n != "grad_map")) if rng.random() < 0.3 else ""
    )
    case = Case(
        target=rng.choice(TARGETS), dtype=rng.choice(list(DTYPES)), batch=rng.choice((1, 1, 2)), heads=heads,
        heads_kv=heads // group, seqlen_q=rng.choice(LENGTHS), seqlen_k=length, head_dim=head_dim,
        head_dim_v=head_dim if rng.random() < 0.8 else rng.choice(HEAD_DIMS), layout=rng.choice(LAYOUTS), mask=mask,
        causal=mask == "none" and rng.random() < 0.25, scale=rng.choice(SCALES), grads=grads,
        map_start=start if mapped else 0, map_stop=rng.randrange(start, length) + 1 if mapped else 0,
        seed=rng.randrange(10**6),
    )  # fmt: skip
    schedules = case.target == "sm_90" and case.layout in ("bhnd", "bnhd") and case.dtype != "fp32" and not mapped
    if schedules and head_dim == case.head_dim_v == 64 and rng.random() < 0.5:
        name = rng.choice(("rotated", "specialized"))
        case = dataclasses.replace(case, schedule=name, mask="none")
    elif schedules and head_dim == case.head_dim_v and rng.random() < 0.5:
        case = dataclasses.replace(case, schedule="pingpong", mask="none")
    return case


def outcome(case: Case, on: str) -> str:
    """ "ok", "refused: why", or what went wrong."""
    from .card import emulated

    device = "cuda" if on == "gpu" else "cpu"
    try:
        with emulated(case.target) if on == "emulated" else contextlib.nullcontext():
            # without emulation, the target is that of the device
            case = dataclasses.replace(case, target=call_target(torch.empty(0, device=device)))
            why = refused(case, device)
            if why:
                return f"refused: {why[0]}"
            run(case, device)
    except Exception as error:  # any error: the other cases still run, and the line of this one is printed
        return f"{type(error).__name__}: {error}"
    return "ok"


def sound(result: str) -> bool:
    return result.split(":")[0] in SOUND


def varied(case: Case, rng: random.Random) -> Case:
    """Other lengths and numbers for the same kernels, unless a length affects what is compiled."""
    length = rng.choice(LENGTHS)
    stop = rng.randrange(length) + 1
    keys = {"map_start": rng.randrange(stop), "map_stop": stop} if case.map_stop else {}
    return dataclasses.replace(case, seqlen_q=rng.choice(LENGTHS), seqlen_k=length, seed=rng.randrange(10**6), **keys)


def drawn(seed: int, number: int, variations: int, most: float) -> Iterator[Case]:
    rng = random.Random(seed)
    for k in range(number):
        if k % (variations + 1) == 0:
            first = case = draw(rng, most)
        else:
            case = varied(first, rng)
            while work(case) > most:
                case = varied(first, rng)
        yield case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="default: another in each run; it is printed")
    parser.add_argument("--num", type=int, default=40, help="calls to draw (default %(default)s)")
    parser.add_argument("--variations", type=int, default=0, help="calls with other lengths, for each drawn call")
    parser.add_argument("--work", type=float, default=math.inf, help="largest number of multiplications of a call")
    parser.add_argument("--repro", help="one call, as a finding prints it; --seed and --num do not count then")
    parser.add_argument(
        "--on", choices=("emulated", "interpreter", "gpu"), default="emulated", help="default %(default)s"
    )
    parser.add_argument("--out", type=Path, help="append a row for each target to this CSV file")
    given = parser.parse_args()
    check_device(given.on)
    seed = random.SystemRandom().randrange(10**9) if given.seed is None else given.seed
    cases = [Case.parse(given.repro)] if given.repro else drawn(seed, given.num, given.variations, given.work)
    print(f"seed {seed}, {1 if given.repro else given.num} calls", flush=True)
    tallies: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    started = time.time()
    for case in cases:
        result = outcome(case, given.on)
        tallies[case.target if given.on == "emulated" else given.on][result.split(":")[0]] += 1
        if not sound(result):
            print(f'{result}\n  again: python -m tests.emulation.fuzz --repro "{case}"', flush=True)
    total = sum(tallies.values(), collections.Counter())
    print(f"{dict(total)}, {round(time.time() - started)} s")
    if given.out:
        drawn_as = {"seed": seed, "variations": given.variations, "work": given.work}
        add_lines(given.out, drawn_as, tallies)
    raise SystemExit(bool(set(total) - SOUND))


def add_lines(path: Path, drawn_as: dict[str, float], tallies: dict[str, collections.Counter[str]]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow([*drawn_as, "target", "calls", "ok", "refused", "bad"])
        for target, tally in sorted(tallies.items()):
            bad = sum(n for kind, n in tally.items() if kind not in SOUND)
            writer.writerow([*drawn_as.values(), target, tally.total(), tally["ok"], tally["refused"], bad])


def check_device(on: str) -> None:
    """Exit if this process cannot run calls on this device."""
    if on == "interpreter" and not interpreting():
        raise SystemExit("--on interpreter: set TRITON_INTERPRET=1, which Triton reads when it is imported")
    if on != "interpreter" and interpreting():
        raise SystemExit(f"--on {on}: unset TRITON_INTERPRET, with which Triton compiles nothing")
    if on == "gpu" and not torch.cuda.is_available():
        raise SystemExit("--on gpu: torch sees no GPU here")


if __name__ == "__main__":
    main()
