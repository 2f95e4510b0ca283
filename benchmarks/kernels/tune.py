"""Which configuration of the forward kernel is the fastest on this machine's GPU, for each shape?

All candidates of a shape alternate with torch's own choice, after a check against float64. A schedule that has never
run on such a GPU is first tried in a separate process, so that if it hangs, only this schedule is lost.

    python -m benchmarks.kernels.tune --csv benchmarks/results/tuning.csv
    python -m benchmarks.kernels.tune --adopt benchmarks/results/tuning.csv   # into kernels/forward/measured.csv
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.common import (
    ROOT,
    add_commit,
    add_csv,
    module_command,
    new_parser,
    read_rows,
    write_rows,
)
from entropy_attn.bench.cases import Case, Inputs
from entropy_attn.bench.gate import Gate
from entropy_attn.bench.implementations.contract import Ask, Results
from entropy_attn.bench.machine import machine
from entropy_attn.bench.measure import digits, failure
from entropy_attn.bench.table import CsvRows
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
    head_dim = workload.head_dim
    found = forward_candidates(target, head_dim, head_dim, dtype, seqlen_k=workload.seqlen_k)
    return [config for config in found if config.schedule in schedules]


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
    """A row for each candidate; the fastest correct one is chosen.

    Args:
        case: the shape, task and dtype.
        configs: the candidates.
        target: architecture, such as "sm_90".
        device: where the tensors are.
        clock: measures the times.
        at_risk: called before candidates run, with those that are to blame if the process hangs or dies.
    """
    inputs = case.inputs(device)
    gate, status = Gate(case, inputs), {}
    runs = {config: functools.partial(by_kernel, config, case.ask) for config in configs}
    for config, call in list(runs.items()):
        at_risk([config])
        try:
            gate.check(call(inputs))
        except Exception as error:  # wrong, or more resources than the GPU has
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
    """Try a schedule in another process: "ok", or why it is left out."""
    try:
        done = subprocess.run(command_of(schedule), capture_output=True, text=True, timeout=PROBE_SECONDS, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return f"it did not end within {PROBE_SECONDS} s"
    return "ok" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it failed"])[-1]


def command_of(schedule: str) -> list[str]:
    return module_command("benchmarks.kernels.tune", "--probe", schedule)


def probe(schedule: str, device: torch.device) -> None:
    """Run each candidate with this schedule once; raises if one is wrong."""
    for head_dim in (64, 128, 80):
        for task in ("plain", "entropy"):
            case = Case(Workload("probe", "", "self", 1, 2, 1024, 1024, head_dim), Ask(task), torch.bfloat16)
            inputs = case.inputs(device)
            for config in candidates(call_target(inputs.query), case.workload, case.dtype, [schedule]):
                Gate(case, inputs).check(by_kernel(config, case.ask, inputs))


def adopt(results: Path) -> int:
    """Write the chosen rows of a file of results to the package's table; returns how many.

    If the schedules of a shape were measured one after another, each has a chosen row; the fastest is taken. Rows of
    other cards stay in the table.
    """
    chosen = [row for row in read_rows(results) if row["chosen"] == "True"]
    best: dict[tuple[str, ...], dict[str, str]] = {}
    for row in sorted(chosen, key=lambda row: -float(row["ms"])):
        best[(row["device"], *(row[name] for name in KEY))] = row
    rows = [row for row in chosen if any(row is one for one in best.values())]
    cards = {row["device"] for row in rows}
    others = [row for row in read_rows(FILE) if row["device"] not in cards]
    write_rows(FILE, [{name: row[name] for name in COLUMNS} for row in (*others, *rows)], COLUMNS)
    return len(rows)


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64, 128, 40, 80, 160],
                        help="in this order, if time runs out (default %(default)s)")  # fmt: skip
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096, 16384], help="of self-attention")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    add_csv(parser, help="write the rows to this file as they are measured")
    add_commit(parser)
    parser.add_argument("--adopt", type=Path, metavar="CSV", help="measure nothing; adopt the winners of this file")
    parser.add_argument("--probe", choices=SCHEDULES, help=SUPPRESS)
    args = parser.parse_args()
    if args.adopt:
        print(f"{adopt(args.adopt)} rows in {FILE}")
        return 0
    if not torch.cuda.is_available():
        print("no GPU is visible to torch, and configurations are chosen by their time on one", file=sys.stderr)
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
    file = CsvRows(args.csv, about, FIELDS) if args.csv else None
    try:
        for workload in (*sweep(args.head_dims, args.lengths), *cross(args.head_dims)):
            for task in ("plain", "entropy"):
                case = Case(workload, Ask(task), dtype)
                target = call_target(torch.empty(0, device=device))
                rows = tune(case, candidates(target, workload, dtype, schedules), target, device, clock)
                if file:
                    file.write(rows)
                best = next((row for row in rows if row["chosen"]), None)
                text = "none ran" if best is None else f"{best['ms']} ms, " + " ".join(f"{n}={best[n]}" for n in CONFIG)
                torchs = "" if task != "plain" or best is None else f" (torch {best['torch_ms']} ms)"
                print(f"{case.label}: {text}{torchs}", flush=True)
                clock.tidy()
    finally:
        if file:
            file.close()
    return 0


def cross(head_dims: list[int]) -> list[Workload]:
    """4096 image queries to the text."""
    return [Workload("sweep", "", "cross", 2, 8, 4096, TEXT_KEYS, head_dim) for head_dim in head_dims]


if __name__ == "__main__":
    sys.exit(main())
