"""What the scripts in benchmarks/ share: options, and rows to the screen and to a CSV file as they come."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from entropy_attn.bench.cases import Case
from entropy_attn.bench.machine import Sensors, machine
from entropy_attn.bench.measure import DeviceLost, measure
from entropy_attn.bench.table import CsvRows
from entropy_attn.bench.timing import clock_of

UNITS = {"p50_ms": "ms", "tflops": "TFLOP/s", "peak_mib": "MiB"}


def arguments(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float16"], default=["bfloat16"])
    parser.add_argument("--csv", type=Path, help="write the rows here as they come")
    parser.add_argument("--commit", help="the commit that the rows name, where the folder is no git checkout")
    return parser


def run_all(cases: Iterable[tuple[Case, Iterable[str]]], args: argparse.Namespace) -> int:
    """Measure each case with the implementations named beside it; the exit code, 1 where a result was wrong."""
    if not torch.cuda.is_available():
        print("no GPU is visible to torch; these times are of a GPU", file=sys.stderr)
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
                figures = "".join(f"{row.get(name, '-'):>10} {unit}" for name, unit in UNITS.items())
                print(f"{case.label} {row['implementation']:<22} {row['status']:<12}{figures}", flush=True)
            if lost is not None:
                print(f"the device is lost, and the cases that were left with it: {lost}", file=sys.stderr)
                return 1
            clock.tidy()
    finally:
        if file:
            file.close()
    return 1 if wrong else 0
