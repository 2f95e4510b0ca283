"""How the entropy of each layer answers a temperature, recorded at chosen steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from entropy_attn.display import table
from entropy_attn.recorders.base import Recorder, Request
from entropy_attn.recorders.shown import NOTHING, as_frame, by_layer, figures
from entropy_attn.recorders.transfer import kept_scale, scales_of, to_host
from entropy_attn.scale import CallInfo
from entropy_attn.validation import expected

COLUMNS = (
    "layer",
    "kind",
    "step",
    "branch",
    "head",
    "seqlen_q",
    "seqlen_k",
    "text_tokens",
    "train_tokens",
    "scale",
    "entropy",
    "response",
    "logit_std",
)


@dataclass(frozen=True)
class _Record:
    """One attention call. Its tensors stay on the device of the call."""

    info: CallInfo
    branches: tuple[str, ...]
    scale: float | torch.Tensor
    means: torch.Tensor  # (3, branches, heads): entropy, response, logit_std
    queries: int


class ResponseRecorder(Recorder):
    """Records how the entropy of self- and joint attention answers a change of the scale.

    For each layer, step, branch and head it keeps three means over the queries of the image and over the images of the
    batch: the entropy H in nats; the response -dH / d ln(scale) in nats, which is the variance of the logits under the
    row's softmax (equality holds without a mask that adds to the logits); and logit_std, the standard deviation of the
    row's logits over its keys, each with weight 1. Multiplying the scale by f changes the entropy by about
    -response * ln f.

    A recorded call costs two more calls of the same attention, at scale * exp(-0.02) and scale * exp(0.02), and one
    covariance of the keys. So record a few steps. Nothing waits for the device.

    Args:
        steps: the denoising steps to record, from 0; None is all of them.
        branches: names of the equal parts of the denoiser's batch, as in `EntropyRecorder`.

    Raises:
        TypeError: `steps` is no sequence of integers, or `branches` no tuple of strings.
        ValueError: `steps` is empty or has a negative number, or `branches` is empty or has a name twice.
    """

    def __init__(self, steps: Sequence[int] | None = None, branches: tuple[str, ...] | None = None):
        super().__init__(branches)
        if steps is not None:
            whole = isinstance(steps, (tuple, list, range)) and all(type(step) is int for step in steps)
            if not whole:
                raise TypeError(expected("steps", "None or a list of whole numbers", steps))
            if not steps or min(steps) < 0:
                raise ValueError(expected("steps", "at least one step, each from 0", steps))
            steps = tuple(steps)
        self.steps = steps
        self._records: list[_Record] = []

    def __len__(self) -> int:
        """Number of attention calls recorded."""
        return len(self._records)

    def reset(self) -> None:
        """Forget everything recorded."""
        self._records.clear()

    def wants(self, info: CallInfo, latent_size: tuple[int, int]) -> Request:
        seen = info.kind != "cross" and info.text_tokens != info.seqlen_k  # not text that attends to itself
        return "response" if seen and (self.steps is None or info.step in self.steps) else None

    @torch.no_grad()
    def record(
        self,
        info: CallInfo,
        scale: float | torch.Tensor,
        measured: torch.Tensor,
        branches: tuple[str, ...],
        latent_size: tuple[int, int],
    ) -> None:
        """Add one call, without waiting for the device.

        Args:
            info: the call.
            scale: the softmax scale that was used, a number or a tensor of shape (), (H,) or (B, H); of the last one
                the mean of each branch is kept.
            measured: (B, H, queries, 3): entropy and response in nats, variance of the logits.
            branches: names of the equal parts of B, in order.
            latent_size: (rows, columns) of the image in latent cells; not used.
        """
        batch, heads, queries, _ = measured.shape
        self._check_parts(info, batch, branches)
        entropy, response, variance = measured.detach().unbind(-1)
        values = torch.stack([entropy, response, variance.sqrt()])
        means = values.view(3, len(branches), batch // len(branches), heads, queries).mean(dim=(2, 4))
        self._records.append(_Record(info, branches, kept_scale(scale, len(branches)), means, queries))

    def to_columns(self) -> dict[str, list[Any]]:
        """The table of `to_dataframe` as lists.

        Returns:
            {column: values}, all of the same length.
        """
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        flat = to_host([record.means.flatten() for record in self._records])
        for record, values, scales in zip(self._records, flat, scales_of(self._records), strict=True):
            info, heads = record.info, record.info.num_heads
            means = values.reshape(3, len(record.branches), heads)
            for at, branch in enumerate(record.branches):
                shared = {
                    "layer": info.layer,
                    "kind": info.kind,
                    "step": info.step,
                    "branch": branch,
                    "seqlen_q": record.queries,
                    "seqlen_k": info.seqlen_k,
                    "text_tokens": info.text_tokens,
                    "train_tokens": info.train_tokens,
                }
                for name, value in shared.items():
                    columns[name] += [value] * heads
                columns["head"] += range(heads)
                columns["scale"] += scales[at * heads : (at + 1) * heads]
                for name, row in zip(("entropy", "response", "logit_std"), means[:, at], strict=True):
                    columns[name] += row.tolist()
        return columns

    def to_dataframe(self) -> Any:
        """What was recorded as a pandas.DataFrame.

        Returns:
            One row for each layer, step, branch and head, in the order of the calls. Columns: layer, kind ("self" or
            "joint"), step, branch, head, seqlen_q, seqlen_k, text_tokens among the keys, train_tokens (missing where
            the model does not state its training size), scale, entropy and response in nats, and logit_std.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_dataframe() needs pandas (pip install pandas); to_columns() does not") from error
        table = pd.DataFrame(self.to_columns(), columns=list(COLUMNS))
        table["train_tokens"] = table["train_tokens"].astype("Int64")
        return table

    def summary(self) -> Any:
        """A pandas.DataFrame with the response of each layer, averaged over steps, heads and generations.

        Returns:
            One row for each layer, branch and number of tokens, in the order of the calls. Columns: layer, kind,
            branch, seqlen_q, seqlen_k, heads, steps (their numbers), scale, response and entropy (nats), logit_std,
            relative (entropy / ln seqlen_k), head_min and head_max, the lowest and highest mean entropy of a head.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return as_frame(self._rows())

    def plot(self) -> Any:
        """Draw the entropy and the response of each layer, without the unconditional branch.

        Returns:
            A matplotlib figure outside pyplot's global state; a notebook shows it, `figure.savefig(path)` writes it.

        Raises:
            ValueError: nothing was recorded.
            ModuleNotFoundError: matplotlib, pandas or diffusers is not installed.
        """
        if not self._records:
            raise ValueError(f"plot(): {NOTHING}")
        return figures().response_of_layers(self.summary())

    def _repr_html_(self) -> str:
        rows = self._rows()
        note = f"{len(self)} attention calls; nats, means over steps and heads" if rows else NOTHING
        return table(type(self).__name__, rows, note)

    def _rows(self) -> list[dict[str, Any]]:
        return by_layer(self.to_columns(), "entropy", ["scale", "response", "logit_std"])
