"""What the GPU benchmarks share: a gate before the clock, interleaved runs, rows that say where they were measured.

Nothing is timed before it is right: an implementation's results are compared with float64 first, within twice the error
of plain torch in the same dtype. Useful FLOPs are counted with the true head dim; the L2 cache is flushed between runs.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

FIELDS = (
    "gpu", "driver", "torch", "triton", "commit", "date", "dtype", "batch", "heads", "seqlen", "seqlen_k", "head_dim",
    "implementation", "status", "max_error", "p20_ms", "p50_ms", "p80_ms", "peak_mib", "tflops",
)  # fmt: skip
ROUNDS = 3  # interleaved passes over the implementations; quantiles are over all of them
BACKENDS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
Results = dict[str, Tensor]
Run = Callable[..., Results]  # query, key, value and what else the benchmark makes -> results by name


@dataclass(frozen=True)
class Case:
    """One shape with the implementations that compete at it."""

    dtype: torch.dtype
    batch: int
    heads: int
    seqlen: int
    seqlen_k: int
    head_dim: int
    runs: dict[str, Run]
    exact: Run  # the truth, from float64 tensors
    plain: Run  # the same in the inputs' dtype, as torch computes it: what the error is measured by
    flops: float
    gate_heads: int = 1  # of the first batch: the whole in float64 would not fit
    extra: Callable[[Case, torch.device], tuple[Tensor, ...]] = field(default=lambda case, device: ())

    def tensors(self, device: torch.device) -> tuple[Tensor, ...]:
        """Random query, key and value, and the benchmark's own; never the same twice."""
        lengths = (self.seqlen, self.seqlen_k, self.seqlen_k)
        shapes = ((self.batch, self.heads, n, self.head_dim) for n in lengths)
        return (*(torch.randn(s, dtype=self.dtype, device=device) for s in shapes), *self.extra(self, device))

    def label(self) -> str:
        keys = "" if self.seqlen_k == self.seqlen else f"x{self.seqlen_k}"
        return f"{str(self.dtype).removeprefix('torch.')} d{self.head_dim} N{self.seqlen}{keys}"


def forced(backend: SDPBackend, *tensors: Tensor, **options: object) -> Tensor:
    """Torch's attention by one backend, which raises RuntimeError where it does not take the call."""
    with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(*tensors, **options)


def gate(run: Run, case: Case, tensors: tuple[Tensor, ...]) -> float:
    """The largest error, as a part of what is allowed, over the results of the case's first heads.

    Raises:
        AssertionError: names the result that is off; NaN is.
    """
    first = slice(0, case.gate_heads)

    def part(t: Tensor) -> Tensor:
        return t[:1, first] if t.dim() == 4 or (t.dim() == 3 and t.shape[1] == case.heads) else t[:1]

    results = run(*tensors)
    some = tuple(part(t) for t in tensors)
    truth, plain = case.exact(*(t.double() for t in some)), case.plain(*some)
    worst = 0.0
    for name, t in results.items():
        exact = truth[name].double()
        error = (part(t).double() - exact).abs().max().item()
        rounding = torch.finfo(t.dtype).eps * exact.abs().max().item()
        allowed = 2 * (plain[name].double() - exact).abs().max().item() + 2 * rounding
        assert error <= allowed, f"{name}: error {error:.3g} above {allowed:.3g}"
        worst = max(worst, error / allowed)
    return worst


def milliseconds(runs: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float, float]]:
    """(p20, p50, p80) in ms of each, over interleaved rounds."""
    from triton.testing import do_bench

    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name] += do_bench(run, warmup=10, rep=40, return_mode="all")
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return {name: tuple(torch.tensor(t, dtype=torch.float64).quantile(levels).tolist()) for name, t in times.items()}


def peak_mib(run: Callable[[], object]) -> float:
    """MiB that a run adds to what is allocated."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(case: Case, device: torch.device) -> list[dict[str, object]]:
    """A row for each implementation; being out of memory and refusing a shape are results too."""
    tensors = case.tensors(device)
    rows: dict[str, dict[str, object]] = {}
    good: dict[str, Callable[[], object]] = {}
    about = {"dtype": str(case.dtype).removeprefix("torch."), "batch": case.batch, "heads": case.heads,
             "seqlen": case.seqlen, "seqlen_k": case.seqlen_k, "head_dim": case.head_dim}  # fmt: skip
    for name, run in case.runs.items():
        rows[name] = about | {"implementation": name}
        try:
            rows[name] |= {"max_error": f"{gate(run, case, tensors):.3f}", "status": "ok"}
            call = good[name] = lambda run=run: run(*tensors)
            rows[name]["peak_mib"] = f"{peak_mib(call):.1f}"
        except torch.cuda.OutOfMemoryError:
            rows[name]["status"] = "out of memory"
        except AssertionError as error:
            rows[name]["status"] = f"wrong: {error}"
        except RuntimeError as error:  # torch and ours say so where they do not take a shape
            rows[name]["status"] = f"refused: {str(error).splitlines()[0][:80]}"
        if rows[name]["status"] != "ok":
            good.pop(name, None)
    for name, (p20, p50, p80) in milliseconds(good).items():
        rows[name] |= {"p20_ms": f"{p20:.4f}", "p50_ms": f"{p50:.4f}", "p80_ms": f"{p80:.4f}",
                       "tflops": f"{case.flops / p50 / 1e9:.1f}"}  # fmt: skip
    return list(rows.values())


def machine(commit: str | None = None) -> dict[str, str]:
    """What every row says about where it was measured."""
    import triton

    def output(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
        return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "unknown"

    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit or output("git", "rev-parse", "--short", "HEAD"),
        "date": datetime.date.today().isoformat(),
    }


def arguments(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float16"], default=["bfloat16"])
    parser.add_argument("--csv", type=Path, help="write the rows here as they come")
    parser.add_argument("--commit", help="the commit that the rows name, where the folder is no git checkout")
    return parser


def run_all(cases: Iterable[Case], args: argparse.Namespace) -> int:
    """Measure, print, and write the rows as they come; the exit code."""
    if not torch.cuda.is_available():
        print("no GPU is visible to torch; these times are of a GPU", file=sys.stderr)
        return 2
    about, wrong = machine(args.commit), 0
    file = args.csv.open("w", newline="") if args.csv else None
    try:
        writer = csv.DictWriter(file, FIELDS) if file else None
        if writer:
            writer.writeheader()
        for case in cases:
            for row in measure(case, torch.device("cuda")):
                wrong += str(row["status"]).startswith("wrong")
                print(f"{case.label()} {row['implementation']:<22} {row['status']:<12} {row.get('p50_ms', '-'):>9} ms "
                      f"{row.get('tflops', '-'):>7} TFLOP/s {row.get('peak_mib', '-'):>9} MiB", flush=True)  # fmt: skip
                if writer:
                    writer.writerow(about | row)
                    file.flush()
    finally:
        if file:
            file.close()
    return 1 if wrong else 0
