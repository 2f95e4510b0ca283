"""The `entropy-attn` command. `main` itself needs only the standard library, so that it can say what is missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130


class Refused(Exception):
    """What was asked for cannot be done; the message is for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. A refusal is one line on stderr and code 2."""
    try:
        import typer

        from .app import app
    except ImportError as error:
        return _refuse(f"the command line needs {error.name}: pip install 'entropy-attn[cli]'")
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        code = app(args=given or ["--help"], prog_name="entropy-attn", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        print("entropy-attn: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Refused as error:
        return _refuse(str(error))
    except Exception as error:
        # click's usage errors, known by their method: newer typer releases carry a click of their own
        if not hasattr(error, "format_message"):
            raise
        return _refuse(error.format_message())
    return code if isinstance(code, int) else 0


def _refuse(message: str) -> int:
    print("entropy-attn: error: " + " ".join(message.split()), file=sys.stderr)
    return EXIT_REFUSED
