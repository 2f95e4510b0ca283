"""The correctness gate: results are checked before they are timed.

Results are compared with float64. The allowed error is twice that of plain torch in the dtype of the inputs, plus
rounding.
"""

from __future__ import annotations

import math

import torch

from entropy_attn.bench.cases import Case, Inputs
from entropy_attn.bench.implementations.contract import Ask, Results
from entropy_attn.bench.implementations.softmax import chunks, materialized

ROWS = 4096  # query rows to check in a forward pass, evenly spread; a gradient needs all rows
FLOAT32 = torch.finfo(torch.float32).eps
CHECKED = 2**21  # scores to check at most, which limits the number of heads
HELD = 2**22  # scores in float64 at a time


class WrongResult(Exception):
    """A result has a larger error than allowed."""


class Gate:
    """The exact results for the inputs of one case, computed once for all implementations.

    Only heads of the first batch entry are checked, for long sequences only one head: all of them in float64 would not
    fit into memory. Maps are means over all heads.
    """

    def __init__(self, case: Case, inputs: Inputs):
        w = case.workload
        every = 1 if case.ask.gradient else -(-w.seqlen // ROWS)
        self.rows = slice(None, None, every)
        checked = max(1, CHECKED // (-(-w.seqlen // every) * w.seqlen_k))
        self.heads = w.heads if case.ask.task == "map" else min(w.heads, checked)
        self.lse = 1.0 + math.log(w.seqlen_k)
        query, key, value = (self._part(name, getattr(inputs, name)) for name in ("query", "key", "value"))
        some = Inputs(query, key, value, {name: self._part(name, t) for name, t in inputs.grads.items()})
        self.exact = by_chunks(some, case.ask, torch.float64)
        plain = by_chunks(some, case.ask, case.dtype)
        self.plain_error = {name: (plain[name].double() - t).abs().max().item() for name, t in self.exact.items()}

    def check(self, results: Results, slack: float = 1.0) -> float:
        """The largest error relative to the allowed one.

        Args:
            results: what an implementation returned.
            slack: multiplies the allowed error; the returned value does not include it.

        Raises:
            WrongResult: an error is larger than allowed, or NaN.
        """
        worst = 0.0
        for name, exact in self.exact.items():
            if name not in results:
                raise WrongResult(f"{name}: missing")
            got = self._part(name, results[name])
            if got.shape != exact.shape:
                raise WrongResult(f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}")
            error = (got.double() - exact).abs().max().item()
            size = exact.abs().max().item()
            # All results depend on logits and an lse of about ln Nk in float32, whose rounding is a relative error of
            # the probabilities. Statistics and gradients are differences, and can be 0.
            lost = FLOAT32 * self.lse * (size if name == "out" else max(1.0, size))
            allowed = 2 * (self.plain_error[name] + torch.finfo(got.dtype).eps * size + lost)
            if not error <= allowed * slack:
                raise WrongResult(f"{name}: error {error:.3g} above {allowed * slack:.3g}")
            worst = max(worst, error / allowed if allowed else 0.0)
        return worst

    def _part(self, name: str, t: torch.Tensor) -> torch.Tensor:
        """The rows and heads that are checked; of keys and values, all rows."""
        t = t[:1] if name == "map" else t[:1, : self.heads]
        if name in ("key", "value", "dk", "dv"):
            return t
        return t[:, self.rows] if name == "map" else t[:, :, self.rows]


def by_chunks(inputs: Inputs, ask: Ask, dtype: torch.dtype) -> Results:
    """The materialized softmax over chunks of rows, with its gradients, in `dtype`."""
    query, key, value = (t.to(dtype) for t in (inputs.query, inputs.key, inputs.value))
    parts: list[Results] = []
    sums = [torch.zeros_like(t, dtype=torch.float64) for t in (key, value)]
    for rows in chunks(query, key, HELD):
        leaves = [t.detach().requires_grad_(ask.gradient) for t in (query[:, :, rows], key, value)]
        with torch.set_grad_enabled(ask.gradient):
            part = materialized(leaves[0], leaves[1], leaves[2], ask)
        if ask.gradient:
            given = [
                (inputs.grads[name][:, rows] if name == "map" else inputs.grads[name][:, :, rows]).to(t.dtype)
                for name, t in part.items()
            ]
            dq, *derived = torch.autograd.grad(list(part.values()), leaves, given)
            part["dq"] = dq
            for total, grad in zip(sums, derived, strict=True):
                total += grad
        parts.append({name: t.detach() for name, t in part.items()})
    whole = {name: torch.cat([part[name] for part in parts], dim=1 if name == "map" else 2) for name in parts[0]}
    return whole | ({"dk": sums[0].to(dtype), "dv": sums[1].to(dtype)} if ask.gradient else {})
