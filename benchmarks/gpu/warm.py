"""Compile what the tables launch, on all cores and without the GPU; Triton's cache on the disk hands it to the tables.

The calls are made on CPU tensors with the driver stood in for (tests/codegen/host.py), so a kernel is compiled for what
Triton would specialise it on; nothing is launched and no memory of the GPU is taken.

    python -m benchmarks.gpu.warm --target sm_90 --jobs 14
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import torch
import triton
import triton.backends.nvidia.driver as nvidia

from benchmarks.gpu import calls, tables
from benchmarks.gpu.device import Device
from benchmarks.kernels import backward, forward, maps, tune
from benchmarks.kernels import host_time as launch
from entropy_attn.bench.cases import Case, run
from entropy_attn.bench.implementations.contract import Ask
from entropy_attn.bench.implementations.registry import IMPLEMENTATIONS
from entropy_attn.bench.workloads import sweep
from entropy_attn.kernels.forward.configs import SCHEDULES
from tests.codegen import host

Job = tuple[str, Callable[[], object]]  # those of one name share kernels, and are left to one process
CPU = torch.device("cpu")
_compiled = 0


class Compiled(host.Compiled):
    """Compiled as for a launch that is one, and then not launched."""

    def __init__(self, source, options, launches):
        global _compiled
        super().__init__(source, options, None)
        target = triton.runtime.driver.active.get_current_target()
        kernel = triton.compile(source, target=target, options=options)
        if hasattr(
            nvidia, "make_launcher"
        ):  # Triton before 3.7 compiles a launcher in C as well, and keeps it likewise
            nvidia.CudaLauncher(kernel.src, kernel.metadata)
        _compiled += 1


def jobs(target: str) -> Iterator[Job]:
    """In the order of the parts."""
    device = Device(CPU, target)
    for name in calls.CALLS:
        yield f"smoke {name}", lambda name=name: calls.launch(name, device)
    tabled = (
        forward.questions(tables.DTYPES, tables.HEAD_DIMS, tables.LENGTHS),
        maps.questions(tables.DTYPES),
        backward.questions(tables.DTYPES, tables.BACKWARD_HEAD_DIMS, tables.LENGTHS[:3]),
    )
    for case, _ in itertools.chain(*tabled):
        yield _shared(case), lambda case=case: _attend(case)
    yield "launch", lambda: [ours() for ours, _ in launch.calls(256, CPU, "triton").values()]
    for case, _ in tables.bench_questions():
        yield _shared(case), lambda case=case: _attend(case)
    for schedule in SCHEDULES:
        for workload in (*sweep(tables.HEAD_DIMS, tables.LENGTHS), *tune.cross(tables.HEAD_DIMS)):
            for task in ("plain", "entropy"):
                case = Case(workload, Ask(task), torch.bfloat16)
                for config in tune.candidates(target, workload, case.dtype, [schedule]):
                    name = f"{schedule} {workload.head_dim} {workload.kind} {task} {config}"
                    yield name, lambda case=case, config=config: tune.by_kernel(config, case.ask, _blank(case))


def _shared(case: Case) -> str:
    w = case.workload
    return f"{w.kind} {w.head_dim} {case.ask.task} {case.ask.gradient} {case.dtype}"


def _attend(case: Case) -> None:
    triton_, inputs = IMPLEMENTATIONS["triton"], _blank(case)
    if case.ask.task in triton_.tasks and not triton_.unsupported_reasons(
        inputs.query, inputs.key, inputs.value, case.ask
    ):
        run(triton_, case.ask, inputs)


def _blank(case: Case):
    with mock.patch.object(torch, "randn", torch.empty):  # of which nothing is read
        return case.inputs(CPU)


def _together(target: str, name: str) -> tuple[str, int, str]:
    """Runs in a process of its own, forked: the jobs of one name."""
    torch.set_num_threads(1)
    before, error = _compiled, ""
    with host.recorded(target, keep=False), mock.patch.object(host, "Compiled", Compiled), torch.no_grad():
        for _, job in (job for job in jobs(target) if job[0] == name):
            try:
                job()
            except Exception as failed:  # the table will meet it again, and say so in a row
                error = f"{type(failed).__name__}: {failed}"
    return name, _compiled - before, error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="such as sm_90")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--only", help="jobs whose name begins so")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: at least 1 is needed")
    if not args.target.startswith("sm_"):
        parser.error(f"--target {args.target}: kernels are compiled ahead for NVIDIA's, such as sm_90")
    names = list(dict.fromkeys(name for name, _ in jobs(args.target)))
    names = [name for name in names if name.startswith(args.only or "")]
    began, kernels, failed = time.monotonic(), 0, 0
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        for name, compiled, error in pool.map(_together, itertools.repeat(args.target), names):
            kernels, failed = kernels + compiled, failed + bool(error)
            if error:
                print(f"{name}: {error}", flush=True)
    print(f"{kernels} kernels in {time.monotonic() - began:.0f} s; {failed} of {len(names)} kinds of calls failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
