"""A few calls under each tool of NVIDIA's compute-sanitizer: memory errors, uninitialized memory, races, barriers.

https://docs.nvidia.com/compute-sanitizer/ComputeSanitizer/index.html
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.child import ROOT
from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import CHECKS

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
CALLS = ("forward-bfloat16", "entropy", "head-dim-40", "mask", "map", "backward")
FOUND = 86  # exit code of the tool if it finds something
SUMMARY = re.compile(r"=+ (?:ERROR|RACECHECK) SUMMARY: (.*)")


class Sanitize:
    """A case is a call under a tool."""

    fields = CHECKS

    def __init__(self, device: Device, commit: str | None):
        self.device, self.about = device, {"part": "sanitize"}

    def cases(self) -> dict[str, dict[str, Any]]:
        pairs = [(tool, call) for tool in TOOLS for call in CALLS]
        return {f"{tool} {call}": {"part": "sanitize", "name": f"{tool} {call}"} for tool, call in pairs}

    def measure(self, key: str, skip: list[Any], at: Callable[[list[Any]], None]) -> list[dict[str, Any]]:
        tool, call = key.split()
        began = time.monotonic()
        done = subprocess.run(command_of(tool, call), cwd=ROOT, capture_output=True, text=True, errors="replace")
        print(done.stdout + done.stderr, flush=True)
        status, detail = verdict(done.returncode, done.stdout + done.stderr)
        return [{"status": status, "seconds": round(time.monotonic() - began, 1), "detail": detail}]


def command_of(tool: str, call: str) -> list[str]:
    # Without torch's caching allocator, each tensor is an allocation whose bounds the tool knows
    return ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool", tool, "--error-exitcode",
            str(FOUND), "--print-limit", "20", sys.executable, "-m", "benchmarks.gpu.calls", call]  # fmt: skip


def verdict(code: int, output: str) -> tuple[str, str]:
    """(status, detail): "ok" only if the tool reports that it found nothing, and the result is correct."""
    summary = SUMMARY.findall(output)
    detail = (
        summary[-1].strip() if summary else "no summary: " + (output.strip().splitlines() or ["no output"])[-1][:200]
    )
    clean = bool(summary) and re.match(r"0 (errors|hazards)", summary[-1]) is not None
    return ("ok" if code == 0 and clean else f"failed: exit code {code}"), detail
