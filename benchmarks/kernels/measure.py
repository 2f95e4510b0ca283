"""Measure the cases of one script on the GPU: rows to the screen, and to a CSV file as they are measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

import torch

from benchmarks.common import add_commit, add_csv, new_parser
from entropy_attn.bench.cases import Case
from entropy_attn.bench.machine import Sensors, machine
from entropy_attn.bench.measure import DeviceLost, measure
from entropy_attn.bench.table import CsvRows
from entropy_attn.bench.timing import clock_of

UNITS = {"p50_ms": "ms", "tflops": "TFLOP/s", "peak_mib": "MiB"}


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options that the scripts of this folder share."""
    parser = new_parser(doc)
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float16"], default=["bfloat16"])
    add_csv(parser, help="write the rows to this file as they are measured")
    add_commit(parser)
    return parser


def run_all(cases: Iterable[tuple[Case, Iterable[str]]], args: argparse.Namespace) -> int:
    """Measure each case with the named implementations.

    Returns:
        The exit code: 1 if a result was wrong or the device was lost, 2 if there is no GPU.
    """
    if not torch.cuda.is_available():
        print("no GPU is visible to torch, and this script measures times on one", file=sys.stderr)
        return 2
    device, wrong = torch.device("cuda", torch.cuda.current_device()), 0
    clock, sensors = clock_of(device), Sensors(device)
    file = CsvRows(args.csv, machine(device, args.commit)) if args.csv else None
    try:
        for case, names in cases:
            lost = None
            try:
                rows = measure(case, device, clock, names, sensors)
            except DeviceLost as error:
                rows, lost = error.rows, error
            if file:
                file.write(rows)
            for row in rows:
                wrong += str(row["status"]).startswith("wrong")
                values = "".join(f"{row.get(name, '-'):>10} {unit}" for name, unit in UNITS.items())
                print(f"{case.label} {row['implementation']:<22} {row['status']:<12}{values}", flush=True)
            if lost is not None:
                print(f"the device is lost; the remaining cases are not measured: {lost}", file=sys.stderr)
                return 1
            clock.tidy()
    finally:
        if file:
            file.close()
    return 1 if wrong else 0
