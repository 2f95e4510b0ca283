"""What the library refuses, as one line for the user; everything else is a bug and keeps its traceback."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

from entropy_attn.cli import Refused, rank
from entropy_attn.cli.loading import Loading


@contextlib.contextmanager
def refusals(loading: Loading | None = None, images: int = 1) -> Iterator[None]:
    """Turn refusals of the library into `Refused`, and its warnings into lines on stderr.

    Args:
        loading: how the pipeline was loaded; decides what the message suggests when memory runs out.
        images: how many images are made at once, for the same message.
    """
    import torch

    from entropy_attn import Unsupported
    from entropy_attn.runs.processes import OtherProcessFailed

    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"entropy-attn: warning: {message}", file=sys.stderr)
            yield
    except (ValueError, Unsupported) as error:
        raise Refused(str(error)) from error
    except ImportError as error:
        if "pip install" in str(error):
            raise Refused(str(error)) from error
        if not isinstance(error, ModuleNotFoundError) or (error.name or "").startswith("entropy_attn"):
            raise
        raise Refused(f"this needs {error.name}: pip install 'entropy-attn[cli,diffusers]'") from error
    except torch.OutOfMemoryError as error:
        raise Refused((loading or Loading()).out_of_memory(images), during_runs=True) from error
    except OtherProcessFailed as error:
        # Once for all of those that did not fail
        raise Refused(str(error) if rank() == 0 else "", during_runs=True) from error
