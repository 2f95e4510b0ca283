"""The parts of a batch, from the texts that its rows may be of."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from entropy_attn.integrations.diffusers.row_texts import Encoded, Match, States
from entropy_attn.recorders.base import Parts, UnknownParts

_COND, _UNCOND = "cond", "uncond"


class GenerationTexts:
    """The texts of one generation.

    texts: each with its role.
    guided: the pipeline has an unconditional branch, by the texts that it encoded.
    closed: the denoiser was called since, so the next text belongs to another generation.
    """

    def __init__(self) -> None:
        self.texts: list[tuple[str, States]] = []
        self.guided = False
        self.closed = False

    def add(self, encoded: Encoded) -> str:
        """Add a text; returns its role."""
        role = self._role(encoded.names)
        if encoded.text is not None:
            self.texts.append((role, encoded.text))
        if encoded.negative is not None:
            self.texts.append((_UNCOND, encoded.negative))
        if role == _UNCOND or (role == _COND and encoded.guided and encoded.text is not None):
            self.guided = True
        return role

    def _role(self, names: Collection[str]) -> str:
        prompt = any(name in ("prompt", "prompt_embeds") for name in names)
        negative = any(name.startswith("negative_prompt") for name in names)
        if prompt and negative:  # one text for both: the pipeline encodes its prompt first
            return _UNCOND if any(role == _COND for role, _ in self.texts) else _COND
        return _COND if prompt else _UNCOND if negative else next(iter(names))


def parts_of(
    found: Sequence[frozenset[Match]], known: GenerationTexts, order: Sequence[str], seen: Collection[str] = ()
) -> Parts:
    """The parts of a batch.

    found: what every row may be.
    order: the branches as the pipeline usually arranges them. It decides where prompt and negative prompt are the same
        text, so a row may be of either.
    seen: branches that had a call in this step already.

    Raises:
        UnknownParts: a row is of no text of this generation, or of another one than the prompts, or the branches have
            different numbers of rows.
    """
    roles = [{match.role for match in row} for row in found]
    strangers = sorted({role for row in roles for role in row} - {_COND, _UNCOND})
    if strangers:
        raise UnknownParts(f"rows of its batch are of a text other than the prompt, {', '.join(strangers)}")
    if not all(roles):
        listed = ", ".join(str(row) for row, names in enumerate(roles) if not names)
        raise UnknownParts(
            f"its batch of {len(roles)} has rows whose text was not encoded in this generation ({listed})"
        )
    names = _decide(roles, order, seen)
    rows = {name: [row for row, branch in enumerate(names) if branch == name] for name in dict.fromkeys(names)}
    counts = {len(each) for each in rows.values()}
    if len(counts) > 1:
        counted = " and ".join(f"{len(each)} of {name!r}" for name, each in rows.items())
        raise UnknownParts(f"its batch of {len(names)} is {counted}, so the branches are not equal parts")
    sorted_rows = [row for name, each in rows.items() for row in _by_image(found, name, each)]
    branches: tuple[str, ...] = tuple(rows)
    if branches == (_COND,) and not known.guided:
        branches = ("all",)
    return Parts(branches, None if sorted_rows == list(range(len(names))) else tuple(sorted_rows))


def _decide(roles: Sequence[set[str]], order: Sequence[str], seen: Collection[str]) -> list[str]:
    """One role per row."""
    if all(len(row) == 1 for row in roles):
        return [next(iter(row)) for row in roles]
    options = [name for name in order if name in (_COND, _UNCOND)] or [_UNCOND, _COND]
    certain = {next(iter(row)) for row in roles if len(row) == 1}
    for number in (2, 1):  # both halves, if the rows allow it, else one branch alone
        for names in [options] if number == 2 else [[name] for name in sorted(options, key=lambda n: n in seen)]:
            guess = _spread(len(roles), names)
            if guess is not None and certain <= set(names):
                if all(name in row for name, row in zip(guess, roles, strict=True)):
                    return guess
    raise UnknownParts("the prompt and the negative prompt of its rows are the same text")


def _spread(rows: int, names: Sequence[str]) -> list[str] | None:
    """Equal parts with these names."""
    each, rest = divmod(rows, len(names))
    return None if rest else [name for name in names for _ in range(each)]


def _by_image(found: Sequence[frozenset[Match]], role: str, rows: list[int]) -> list[int]:
    """The rows of a branch in the order of its images, which is the order in which their texts were encoded."""
    counts = {match.count for row in rows for match in found[row] if match.role == role}
    if len(counts) != 1:
        return rows
    count = counts.pop()
    if role == _COND and len(rows) % count:
        raise UnknownParts(f"a call has {len(rows)} of the {count} rows that were encoded for the prompt")
    left, ordered = list(rows), []
    for position in range(len(rows)):
        wanted = position % count
        row = next((r for r in left if any(m.role == role and m.index == wanted for m in found[r])), None)
        if row is None:
            if role == _COND:
                raise UnknownParts("the images of its batch are not those whose prompts were encoded")
            return rows
        left.remove(row)
        ordered.append(row)
    return ordered
