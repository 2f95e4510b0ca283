"""A pytest plugin for the tests of diffusers: every denoiser that they build is routed through this package.

`compare.py` loads this plugin. The scale is the model's default, so results must not change.
"""

from __future__ import annotations

import functools
from collections import Counter

import diffusers

import entropy_attn as ea
from entropy_attn.integrations.diffusers.models import MODELS

_routed: Counter[str] = Counter()


def pytest_configure(config: object) -> None:
    for model in MODELS:
        denoiser = getattr(diffusers, model.denoiser, None)
        if denoiser is not None:  # older releases of diffusers have fewer
            denoiser.__init__ = routed_when_built(denoiser)


def pytest_terminal_summary(terminalreporter: object) -> None:
    terminalreporter.write_line(f"routed denoisers: {_routed.total()}")  # compare.py looks for this line


def routed_when_built(denoiser: type) -> object:
    build = denoiser.__init__

    @functools.wraps(build)
    def build_and_route(self: object, *args: object, **kwargs: object) -> None:
        build(self, *args, **kwargs)
        if type(self) is denoiser:  # a subclass may be a different model
            ea.apply(self, scale=ea.scale.Fixed(), layers="all")
            _routed[denoiser.__name__] += 1

    return build_and_route
