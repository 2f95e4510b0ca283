"""Execute the notebooks and write them back with their outputs.

    python -m docs.generate.notebooks
    python -m docs.generate.notebooks words

Each runs in a fresh kernel and in an empty folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from benchmarks.common import new_parser

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
SECONDS = 300  # for one cell
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# Neither progress bars of loading nor the advice to install widgets for them.
QUIET = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}


def executed(notebook: NotebookNode) -> NotebookNode:
    """A copy of a notebook with the outputs of a fresh kernel in an empty folder, `clean`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    fresh = nbformat.from_dict(notebook)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **QUIET, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("TRITON_INTERPRET", None)
    with TemporaryDirectory() as folder:
        settings = {"kernel_name": KERNEL["name"], "timeout": SECONDS, "startup_timeout": SECONDS}
        place = {"metadata": {"path": folder}}
        NotebookClient(fresh, record_timing=False, resources=place, **settings).execute(env=environment)
    return clean(fresh)


def clean(notebook: NotebookNode) -> NotebookNode:
    """A copy without what differs from run to run or machine to machine: versions, times, addresses of objects."""
    cleaned = nbformat.from_dict(notebook)
    cleaned.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in cleaned.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            shown = output.get("data", {})
            if "image/png" in shown:
                shown.pop("image/jpeg", None)  # the same image a second time
            if "text/plain" in shown:
                shown["text/plain"] = re.sub(r" at 0x[0-9a-f]+>", ">", shown["text/plain"])
    return cleaned


def main() -> None:
    paths = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
    parser = new_parser(__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"{', '.join(paths)}; default: all")
    names = parser.parse_args().names
    if unknown := [name for name in names if name not in paths]:
        parser.error(f"NAME: expected {', '.join(paths)}, got {', '.join(unknown)}")
    for path in [paths[name] for name in names or paths]:
        nbformat.write(executed(nbformat.read(path, as_version=4)), path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
