"""The machine, for every row: device, versions, commit, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch


def machine(device: torch.device, commit: str | None = None) -> dict[str, str]:
    """Device, versions, commit and date; `commit` is needed if the package is not in a git checkout."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"{cpu_name()}, {torch.get_num_threads()} thread(s)",
        "driver": (_smi(device, "driver_version") or ["unknown"])[0] if gpu else "",
        "torch": torch.__version__,
        "triton": version("triton"),
        "commit": commit or _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _commit() -> str:
    """The commit of the checkout that tracks this file; a virtual environment can be inside another one."""
    git = ("git", "-C", str(Path(__file__).parent))
    tracked = _output(*git, "ls-files", "--error-unmatch", Path(__file__).name)
    return (tracked and _output(*git, "describe", "--always", "--dirty", "--exclude=*")) or "unknown"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Sensors:
    """Clock and power of a GPU while it works; empty if nvidia-smi does not report them."""

    def __init__(self, device: torch.device):
        self._command = _smi_command(device, "clocks.sm,power.draw") if device.type == "cuda" else None
        self._asked: subprocess.Popen[str] | None = None

    def ask(self) -> None:
        """Ask without waiting, just before work is queued; a second call replaces the first."""
        self._take()
        if self._command:
            try:
                self._asked = subprocess.Popen(
                    self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )  # fmt: skip
            except OSError:
                self._command = None

    def answer(self) -> dict[str, str]:
        values = [value.strip() for value in self._take().split(",")]
        if len(values) != 2:
            return {}
        known = dict(zip(("sm_mhz", "power_w"), values, strict=True))
        return {name: value for name, value in known.items() if value.replace(".", "").isdecimal()}  # or "[N/A]"

    def _take(self) -> str:
        asked, self._asked = self._asked, None
        return asked.communicate()[0].strip() if asked else ""


def _smi_command(device: torch.device, fields: str) -> list[str]:
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    which = [f"--id=GPU-{uuid}"] if uuid else []
    return ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", *which]


def _smi(device: torch.device, fields: str) -> list[str]:
    return _output(*_smi_command(device, fields)).splitlines()


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
