"""Compile the kernels of the tables on all cores, without the GPU; the tables find them in Triton's cache on disk.

The calls are made on CPU tensors with a stub of the driver (tests/codegen/host.py), so kernels are compiled with the
specializations of a real launch; nothing is launched, and no GPU memory is used.

    python -m benchmarks.gpu.warm --target sm_90 --jobs 14
    python -m benchmarks.gpu.warm --target sm_90 --only "smoke map"
"""

from __future__ import annotations

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

from benchmarks.common import new_parser, positive
from benchmarks.gpu import calls, tables
from benchmarks.gpu.device import Device
from benchmarks.kernels import backward, forward, host_time, maps, tune
from entropy_attn.bench.cases import Case, run
from entropy_attn.bench.implementations.contract import Ask
from entropy_attn.bench.implementations.registry import IMPLEMENTATIONS
from entropy_attn.bench.workloads import sweep
from entropy_attn.kernels.forward.configs import SCHEDULES
from tests.codegen import host

Job = tuple[str, Callable[[], object]]  # jobs of the same name share kernels, and run in one process
CPU = torch.device("cpu")
_compiled = 0


class Compiled(host.Compiled):
    """Compile as for a launch, but do not launch."""

    def __init__(self, source, options, launches):
        global _compiled
        super().__init__(source, options, None)
        target = triton.runtime.driver.active.get_current_target()
        kernel = triton.compile(source, target=target, options=options)
        if hasattr(nvidia, "make_launcher"):  # Triton before 3.7 also compiles and caches a launcher in C
            nvidia.CudaLauncher(kernel.src, kernel.metadata)
        _compiled += 1


def jobs(target: str) -> Iterator[Job]:
    """All jobs, in the order of the parts."""
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
    yield "launch", lambda: [ours() for ours, _ in host_time.calls(256, CPU, "triton").values()]
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
    with mock.patch.object(torch, "randn", torch.empty):  # the values are not read
        return case.inputs(CPU)


def _together(target: str, name: str) -> tuple[str, int, str]:
    """In a forked process: run the jobs of one name."""
    torch.set_num_threads(1)
    before, error = _compiled, ""
    with host.recorded(target, keep=False), mock.patch.object(host, "Compiled", Compiled), torch.no_grad():
        for _, job in (job for job in jobs(target) if job[0] == name):
            try:
                job()
            except Exception as failed:  # the table will have the same error, in a row
                error = f"{type(failed).__name__}: {failed}"
    return name, _compiled - before, error


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--target", required=True, help="such as sm_90")
    parser.add_argument("--jobs", type=positive, default=1, help="number of processes (default %(default)s)")
    parser.add_argument("--only", help="only jobs whose name begins with this")
    args = parser.parse_args()
    if not args.target.startswith("sm_"):
        parser.error(f"--target: expected an NVIDIA architecture, such as sm_90, got {args.target}")
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
