"""The device that is measured: the GPU that is here, or one that tests/emulation makes up, for small cases.

python -m benchmarks.gpu.device --device cuda      # what it is, as a line of JSON
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.gpu.child import ANSWERS
from entropy_attn.bench.machine import machine
from entropy_attn.bench.timing import Clock, CpuClock, clock_of
from entropy_attn.kernels.common.support import device_target

EMULATED = "emulated:"


@dataclass(frozen=True)
class Device:
    """Where tensors lie and what the rows say of it; an emulated card's times mean nothing, so its cases are small."""

    where: torch.device
    target: str
    emulated: bool = False

    def about(self, commit: str | None) -> dict[str, str]:
        return machine(self.where, commit) | ({"device": f"emulated {self.target}"} if self.emulated else {})

    def clock(self) -> Clock:
        return _OneRun() if self.emulated else clock_of(self.where)

    def wait(self) -> None:
        if not self.emulated:
            torch.cuda.synchronize(self.where)


class _OneRun(CpuClock):
    round_ms = 0.0


@contextlib.contextmanager
def opened(name: str) -> Iterator[Device]:
    """
    Raises:
        SystemExit: no such device, or none that the kernels are made for.
    """
    if name.startswith(EMULATED):
        try:
            from tests.emulation.card import emulated
        except ModuleNotFoundError as error:
            raise SystemExit(f"--device {name}: an emulated card is made by tests/emulation: {error}") from None
        target = name.removeprefix(EMULATED)
        with emulated(target):
            yield Device(torch.device("cpu"), target, emulated=True)
        return
    if name != "cuda":
        raise SystemExit(f"--device {name}: cuda or {EMULATED}sm_80, {EMULATED}sm_90 are known")
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is visible to torch; nothing was checked or measured")
    where = torch.device("cuda", torch.cuda.current_device())
    target = device_target(where)
    if target is None:
        raise SystemExit(f"{torch.cuda.get_device_name(where)} is none of the GPUs that the kernels are made for")
    yield Device(where, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    with opened(args.device) as device:
        line = json.dumps({"target": device.target, **device.about(None)}) + "\n"
    if ANSWERS in os.environ:
        os.write(int(os.environ[ANSWERS]), line.encode())
    else:
        print(line, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
