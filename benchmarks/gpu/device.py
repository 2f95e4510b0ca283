"""Which device is measured? The GPU of this machine, or one that tests/emulation emulates, for small cases.

python -m benchmarks.gpu.device --device cuda              # prints a description as a line of JSON
python -m benchmarks.gpu.device --device emulated:sm_90
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.common import new_parser
from benchmarks.gpu.child import ANSWERS
from entropy_attn.bench.machine import machine
from entropy_attn.bench.timing import Clock, CpuClock, clock_of
from entropy_attn.kernels.common.support import device_target

EMULATED = "emulated:"


@dataclass(frozen=True)
class Device:
    """Where tensors are, and how rows describe it. Times of an emulated card mean nothing, so its cases are small."""

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
    """The device of this name.

    Raises:
        SystemExit: there is no such device, or the kernels do not support it.
    """
    if name.startswith(EMULATED):
        try:
            from tests.emulation.card import emulated
        except ModuleNotFoundError as error:
            raise SystemExit(f"--device {name}: emulation needs the folder tests/emulation: {error}") from None
        target = name.removeprefix(EMULATED)
        with emulated(target):
            yield Device(torch.device("cpu"), target, emulated=True)
        return
    if name != "cuda":
        raise SystemExit(f"--device: expected cuda, {EMULATED}sm_80 or {EMULATED}sm_90, got {name}")
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is visible to torch; nothing is checked or measured")
    where = torch.device("cuda", torch.cuda.current_device())
    target = device_target(where)
    if target is None:
        raise SystemExit(f"the kernels do not support this GPU: {torch.cuda.get_device_name(where)}")
    yield Device(where, target)


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or emulated:sm_90")
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
