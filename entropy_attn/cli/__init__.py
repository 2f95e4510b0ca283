"""The `entropy-attn` command. `main` needs only the standard library, so that it can report what is not installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130


class Refused(Exception):
    """The command cannot be carried out; the message is for the user.

    Args:
        message: one line; empty if another process says it.
        during_runs: whether runs may have been finished before.
    """

    def __init__(self, message: str, during_runs: bool = False):
        super().__init__(message)
        self.during_runs = during_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    A refusal is one line on stderr and exit code 2; an interruption is exit code 130.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from entropy_attn.cli.app import app

        code = app(args=given or ["--help"], prog_name="entropy-attn", standalone_mode=False)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except Refused as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        # A missing module of this package is a bug
        if (error.name or "entropy_attn").partition(".")[0] == "entropy_attn":
            raise
        return _refuse(f"this needs {error.name}: pip install 'entropy-attn[cli]'")
    except Exception as error:
        # Errors of click, which are recognized by their attributes: newer releases of typer bundle a copy of click
        if type(error).__name__ == "Abort":
            code = EXIT_INTERRUPTED
        elif hasattr(error, "format_message"):
            return _refuse(error.format_message())
        else:
            raise
    if code == EXIT_INTERRUPTED and rank() == 0:
        print("entropy-attn: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def is_one_of_several() -> bool:
    """Whether torchrun or `accelerate launch` has started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """The number of this process among them, from 0; 0 of a process that is alone."""
    return int(os.environ.get("RANK", "0")) if is_one_of_several() else 0


def _refuse(message: str) -> int:
    if message:
        of = f"process {rank()}: " if rank() else ""
        print(f"entropy-attn: {of}error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_REFUSED
