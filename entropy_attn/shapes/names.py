"""How an option or argument `model` names an embedded model: "shapes" is the default one, "shapes:NAME" any of them.

No Hub id has a colon, so such a name is never taken for one; a path is written with "./" before it.
"""

from __future__ import annotations

from entropy_attn import shapes
from entropy_attn.validation import expected

PREFIX = "shapes"


def embedded_names() -> list[str]:
    """What `embedded` takes."""
    return [PREFIX, *(f"{PREFIX}:{name}" for name in shapes.MODELS)]


def embedded(model: str) -> str | None:
    """The name in `shapes.MODELS` that is meant; None for a model that is not an embedded one.

    Raises:
        ValueError: there is no embedded model of this name.
    """
    prefix, colon, name = model.partition(":")
    if prefix != PREFIX:
        return None
    name = name if colon else shapes.DEFAULT
    if name not in shapes.MODELS:
        raise ValueError(expected("model", f"one of {', '.join(embedded_names())}", model))
    return name
