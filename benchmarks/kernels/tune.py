"""Time every candidate of the forward kernel on the card that is here, and keep the fastest of each shape.

All candidates of a shape take turns with torch's own choice, after a check against float64. A schedule that has never
run on such a card is tried in a process of its own first, so that one that hangs costs that schedule alone.

    python -m benchmarks.kernels.tune --csv benchmarks/results/tuning.csv
    python -m benchmarks.kernels.tune --adopt benchmarks/results/tuning.csv   # into kernels/forward/measured.csv
"""

from __future__ import annotations

import argparse
import csv
import functools
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

from entropy_attn.bench.cases import Case, Inputs
from entropy_attn.bench.gate import Gate
from entropy_attn.bench.implementations.contract import Ask, Results
from entropy_attn.bench.machine import machine
from entropy_attn.bench.measure import digits, failure
from entropy_attn.bench.timing import Clock, clock_of, interleaved, quantiles
from entropy_attn.bench.workloads import Workload, sweep
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.support import call_target
from entropy_attn.kernels.forward.configs import SCHEDULES, ForwardConfig, forward_candidates
from entropy_attn.kernels.forward.launch import attention_forward
from entropy_attn.kernels.forward.measured import COLUMNS, CONFIG, FILE, KEY

FIELDS = (*COLUMNS[: COLUMNS.index("torch_ms")], "p20_ms", "p80_ms", "host_ms", "status", "chosen",
          *COLUMNS[COLUMNS.index("torch_ms") :])  # fmt: skip
PROBE_SECONDS = 90
TORCH = "torch"
TEXT_KEYS = 77
Row = dict[str, object]


def candidates(target: str, workload: Workload, dtype: torch.dtype, schedules: Iterable[str]) -> list[ForwardConfig]:
    options = {"seqlen_k": workload.seqlen_k}
    return [
        config
        for config in forward_candidates(target, workload.head_dim, workload.head_dim, dtype, **options)
        if config.schedule in schedules
    ]


def by_kernel(config: ForwardConfig, ask: Ask, inputs: Inputs) -> Results:
    call = AttentionCall(inputs.query, inputs.key, inputs.value, return_entropy=ask.task == "entropy")
    out, _, entropy = attention_forward(call, config=config)
    return {"out": out} | ({"entropy": entropy} if entropy is not None else {})


def by_torch(inputs: Inputs) -> Results:
    return {"out": F.scaled_dot_product_attention(inputs.query, inputs.key, inputs.value)}


def tune(
    case: Case, configs: list[ForwardConfig], target: str, device: torch.device, clock: Clock,
    at_risk: Callable[[list[ForwardConfig]], None] = lambda configs: None,
) -> list[Row]:  # fmt: skip
    """A row for each candidate, of which the fastest right one is chosen.

    ``at_risk`` is told, before they run, which candidates are to blame if nothing comes back.
    """
    inputs = case.inputs(device)
    gate, status = Gate(case, inputs), {}
    runs = {config: functools.partial(by_kernel, config, case.ask) for config in configs}
    for config, run in list(runs.items()):
        at_risk([config])
        try:
            gate.check(run(inputs))
        except Exception as error:  # wrong, or more than the card has
            status[config] = failure(error)
            del runs[config]
    del gate
    against = {TORCH: by_torch} if case.ask.task == "plain" else {}

    def failed(config: object, error: Exception) -> None:
        status[config] = failure(error)

    at_risk(list(runs))
    sets = [inputs, *(case.inputs(device) for _ in range(clock.sets(inputs) - 1))]
    with torch.no_grad():
        found = interleaved(clock, runs | against, sets, failed)
    times = {name: quantiles(t) for name, t in found.items()}
    host = {name: statistics.median(t.host) for name, t in found.items() if t.host}
    torch_ms = times.pop(TORCH)[1] if TORCH in times else None
    fastest = min(times, key=lambda config: times[config][1], default=None)
    w = case.workload
    shape = (target, w.head_dim, w.seqlen, w.seqlen_k, case.ask.task == "entropy")
    about = dict(zip(KEY, shape, strict=True)) | {"torch_ms": digits(torch_ms)}
    return [
        about
        | asdict(config)
        | _timed(times.get(config), status.get(config, "ok"))
        | {"host_ms": digits(host.get(config)), "chosen": config is fastest}
        for config in configs
    ]


def _timed(times: tuple[float, ...] | None, status: str) -> Row:
    p20, p50, p80 = times or (None, None, None)
    return {"p20_ms": digits(p20), "ms": digits(p50), "p80_ms": digits(p80), "status": status}


def works(schedule: str) -> str:
    """ "ok", or why a schedule is left out."""
    try:
        done = subprocess.run(command_of(schedule), capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it did not end within {PROBE_SECONDS} s"
    return "ok" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it failed"])[-1]


def command_of(schedule: str) -> list[str]:
    return [sys.executable, __file__, "--probe", schedule]


def probe(schedule: str, device: torch.device) -> None:
    """Run each candidate with this schedule once; raises where one is wrong."""
    for head_dim in (64, 128, 80):
        for task in ("plain", "entropy"):
            case = Case(Workload("probe", "", "self", 1, 2, 1024, 1024, head_dim), Ask(task), torch.bfloat16)
            inputs = case.inputs(device)
            for config in candidates(call_target(inputs.query), case.workload, case.dtype, [schedule]):
                Gate(case, inputs).check(by_kernel(config, case.ask, inputs))


def adopt(results: Path) -> int:
    """Write the winners of a file of results to the package's table; how many.

    Where the schedules of a shape were measured one after another, each has a winner; the fastest is the shape's.
    """
    with results.open(newline="") as file:
        chosen = [row for row in csv.DictReader(file) if row["chosen"] == "True"]
    best: dict[tuple[str, ...], dict[str, str]] = {}
    for row in sorted(chosen, key=lambda row: -float(row["ms"])):
        best[tuple(row[name] for name in KEY)] = row
    rows = [row for row in chosen if any(row is one for one in best.values())]
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64, 128, 40, 80, 160],
                        help="in this order, should time run out (default %(default)s)")  # fmt: skip
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096, 16384], help="of self-attention")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--csv", type=Path, help="write the rows here as they come")
    parser.add_argument("--commit", help="the commit that the rows name, where the folder is no git checkout")
    parser.add_argument("--adopt", type=Path, metavar="CSV", help="measure nothing: take the winners of this file over")
    parser.add_argument("--probe", choices=SCHEDULES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.adopt:
        print(f"{adopt(args.adopt)} rows in {FILE}")
        return 0
    if not torch.cuda.is_available():
        print("no GPU is visible to torch; configurations are chosen by their time on one", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    if args.probe:
        probe(args.probe, device)
        return 0

    schedules = ["plain"] if "plain" in args.schedules else []
    for schedule in (name for name in args.schedules if name != "plain"):
        outcome = works(schedule)
        print(f"schedule {schedule}: {outcome}", flush=True)
        schedules += [schedule] if outcome == "ok" else []
    about, clock, dtype = machine(device, args.commit), clock_of(device), getattr(torch, args.dtype)
    about = {name: about[name] for name in ("device", "triton", "torch", "commit", "date")}
    with args.csv.open("w", newline="") if args.csv else nullcontext() as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n") if file else None
        if writer:
            writer.writeheader()
        for workload in (*sweep(args.head_dims, args.lengths), *cross(args.head_dims)):
            for task in ("plain", "entropy"):
                case = Case(workload, Ask(task), dtype)
                target = call_target(torch.empty(0, device=device))
                rows = tune(case, candidates(target, workload, dtype, schedules), target, device, clock)
                if writer:
                    writer.writerows(row | about for row in rows)
                    file.flush()
                best = next((row for row in rows if row["chosen"]), None)
                told = "none ran" if best is None else f"{best['ms']} ms, " + " ".join(f"{n}={best[n]}" for n in CONFIG)
                torchs = "" if task != "plain" or best is None else f" (torch {best['torch_ms']} ms)"
                print(f"{case.label}: {told}{torchs}", flush=True)
                clock.tidy()
    return 0


def cross(head_dims: list[int]) -> list[Workload]:
    """4096 image queries to the text."""
    return [Workload("sweep", "", "cross", 2, 8, 4096, TEXT_KEYS, head_dim) for head_dim in head_dims]


if __name__ == "__main__":
    sys.exit(main())
