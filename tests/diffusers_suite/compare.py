"""Run the model tests of diffusers twice, unchanged and with every denoiser routed, and compare the outcomes.

This needs a checkout of diffusers, whose sources are tested, and the packages that its tests import (httpx,
parameterized, requests_mock). No test may pass without this package and fail with it, unless `apply` refuses the
attention that the test sets. The exit code is 1 if there is such a test.

    python tests/diffusers_suite/compare.py --diffusers ~/src/diffusers --csv benchmarks/results/diffusers_suite.csv
    python tests/diffusers_suite/compare.py --diffusers ~/src/diffusers --models flux sd3
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.progress import track
from rich.table import Table

HERE = Path(__file__).parent
FILES = {
    "unet": "tests/models/unets/test_models_unet_2d_condition.py",
    "unet2d": "tests/models/unets/test_models_unet_2d.py",
    "dit": "tests/models/transformers/test_models_dit_transformer2d.py",
    "pixart": "tests/models/transformers/test_models_pixart_transformer2d.py",
    "sd3": "tests/models/transformers/test_models_transformer_sd3.py",
    "flux": "tests/models/transformers/test_models_transformer_flux.py",
    "flux2": "tests/models/transformers/test_models_transformer_flux2.py",
    "chroma": "tests/models/transformers/test_models_transformer_chroma.py",
    "qwenimage": "tests/models/transformers/test_models_transformer_qwenimage.py",
    "z_image": "tests/models/transformers/test_models_transformer_z_image.py",
    "lumina": "tests/models/transformers/test_models_transformer_lumina.py",
    "lumina2": "tests/models/transformers/test_models_transformer_lumina2.py",
    "aura_flow": "tests/models/transformers/test_models_transformer_aura_flow.py",
    "cogvideox": "tests/models/transformers/test_models_transformer_cogvideox.py",
    "cogview4": "tests/models/transformers/test_models_transformer_cogview4.py",
    "mochi": "tests/models/transformers/test_models_transformer_mochi.py",
    "sana": "tests/models/transformers/test_models_transformer_sana.py",
    "wan": "tests/models/transformers/test_models_transformer_wan.py",
    "ltx": "tests/models/transformers/test_models_transformer_ltx.py",
    "hunyuan_video": "tests/models/transformers/test_models_transformer_hunyuan_video.py",
    "hunyuan_dit": "tests/models/transformers/test_models_transformer_hunyuan_dit.py",
}
REFUSAL = "entropy_attn.errors.Unroutable"
COLUMNS = (
    "model",
    "passed",
    "passed_routed",
    "refused",
    "broken",
    "mended",
    "failed_in_both",
    "skipped",
    "diffusers",
    "torch",
)


@dataclass(frozen=True)
class Outcomes:
    """The outcome of each test of a file: passed, failed, skipped, or refused if `apply` cannot route the model."""

    plain: dict[str, str]
    routed: dict[str, str]

    @property
    def broken(self) -> list[str]:
        """Tests that pass without routing, and with routing neither pass nor are refused."""
        fine = ("passed", "refused")
        return sorted(n for n, outcome in self.plain.items() if outcome == "passed" and self.routed.get(n) not in fine)

    @property
    def mended(self) -> list[str]:
        return sorted(name for name, outcome in self.routed.items() if outcome == "passed" != self.plain.get(name))

    def row(self, model: str) -> dict[str, object]:
        plain, routed = Counter(self.plain.values()), Counter(self.routed.values())
        both = sum(self.routed.get(name) == outcome == "failed" for name, outcome in self.plain.items())
        return {
            "model": model, "passed": plain["passed"], "passed_routed": routed["passed"], "refused": routed["refused"],
            "broken": len(self.broken), "mended": len(self.mended), "failed_in_both": both, "skipped": plain["skipped"],
        }  # fmt: skip


class NotTested(Exception):
    """Nothing was compared; the message says why."""


def run(checkout: Path, file: str, routed: bool, limit: float) -> dict[str, str]:
    """Outcomes of one file, by the class and name of each test.

    Raises:
        NotTested: pytest found nothing to run, no denoiser was routed, or the time limit was reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", file]
        paths = [str(checkout / "src"), str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        if routed:
            command += ["-p", "plugin"]
            paths.append(str(HERE))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=limit
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NotTested(f"{file}: not done within {limit:.0f} s") from None
        if (
            done.returncode not in (0, 1) or not report.exists()
        ):  # 0: all passed, 1: some failed; otherwise nothing was tested
            raise NotTested(f"{file}: pytest did not run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        if routed and not re.search(r"routed denoisers: [1-9]", done.stdout):
            raise NotTested(f"{file}: no denoiser was routed, so nothing was compared")
        return outcomes(report)


def outcomes(report: Path) -> dict[str, str]:
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        if any(f"{REFUSAL}: " in (child.text or "") for child in case.iter("failure")):
            outcome = "refused"
        found[f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"] = outcome
    return found


def checked_out(checkout: Path) -> str:
    """The version of a checkout.

    Raises:
        SystemExit: the folder is not a checkout.
    """
    init = checkout / "src" / "diffusers" / "__init__.py"
    found = re.search(r'__version__ = "([^"]+)"', init.read_text()) if init.exists() else None
    if found is None:
        raise SystemExit(f"--diffusers {checkout}: not a checkout of diffusers: {init} names no version")
    return found.group(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers", type=Path, required=True, metavar="FOLDER", help="a checkout with its tests")
    parser.add_argument("--models", nargs="+", choices=list(FILES), default=list(FILES), help="default: all")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds per file and run (default %(default).0f)")
    parser.add_argument("--csv", type=Path, help="write the rows here; rows of other models in the file stay")
    args = parser.parse_args()
    about = {"diffusers": checked_out(args.diffusers), "torch": version("torch")}

    rows, broken, untested = [], [], []
    console = Console(stderr=True)
    for model in track(args.models, "testing", console=console, transient=True):
        if not (args.diffusers / FILES[model]).exists():
            console.print(f"{model}: this checkout has no {FILES[model]}")
            continue
        file, checkout = FILES[model], args.diffusers.resolve()
        try:
            both = Outcomes(*(run(checkout, file, routed, args.limit) for routed in (False, True)))
        except NotTested as error:
            untested.append(str(error))
            continue
        rows.append(both.row(model) | about)
        broken += [f"{model} {name}" for name in both.broken]
        if args.csv:
            write(args.csv, rows)
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*(str(row[name]) for name in COLUMNS))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for name in broken:
        print(f"broken: {name}")
    for reason in untested:
        print(f"not tested: {reason}")
    return 1 if broken or untested else 0


def write(path: Path, rows: list[dict[str, object]]) -> None:
    kept: dict[str, dict[str, object]] = {}
    if path.exists():
        with path.open(newline="") as file:
            kept = {row["model"]: row for row in csv.DictReader(file)}
    kept |= {str(row["model"]): row for row in rows}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept[model] for model in FILES if model in kept)


if __name__ == "__main__":
    sys.exit(main())
