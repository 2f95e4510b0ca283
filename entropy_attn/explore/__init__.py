"""A page to explore a profile or word maps: one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from entropy_attn.explore.needs import require
from entropy_attn.explore.page import Section, write
from entropy_attn.explore.reading import ProfileFolder, read_profile
from entropy_attn.explore.word_maps import WordMaps, read_maps


def write_page(out: Path, profiles: Sequence[ProfileFolder] = (), maps: Sequence[WordMaps] = ()) -> Path:
    """Write the page of profiles and word maps.

    Args:
        out: the HTML file.
        profiles: what `read_profile` returned.
        maps: what `read_maps` returned, or word maps made by hand.

    Returns:
        `out`.

    Raises:
        ImportError: altair or vl-convert-python is missing.
    """
    require()
    from entropy_attn.explore.profile_views import profile_section
    from entropy_attn.explore.word_views import words_section

    sections: list[Section] = [*map(profile_section, profiles), *map(words_section, maps)]
    return write(out, sections)


__all__ = ["ProfileFolder", "WordMaps", "read_maps", "read_profile", "require", "write_page"]
