"""Links between the Markdown files of the repository: their files and their headings exist."""

from __future__ import annotations

import re

import pytest

from tests.support.markdown import ROOT, anchors, documents, links, slug

DOCUMENTS = documents()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_targets_exist(document):
    for link in links(document):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            assert link.startswith("https://"), f"{link}: a link to another site begins with https://"
            continue
        target = ((ROOT / document).parent / path).resolve() if path else ROOT / document
        assert target.exists() and target.is_relative_to(ROOT), f"{link} leads nowhere"
        if anchor:
            assert target.suffix == ".md", f"{link}: only Markdown files have headings"
            assert anchor in anchors(target.relative_to(ROOT).as_posix()), f"{link}: there is no such heading"


def test_the_reader_sees_files_links_and_headings():
    assert {"README.md", "docs/scale.md", "kernels/README.md", "examples/README.md"} <= set(DOCUMENTS)
    assert {"profile.md#hold-entropyjson", "images/scale-policies.png"} <= set(links("docs/scale.md"))
    assert "hold-entropyjson" in anchors("docs/profile.md") and "no-such-heading" not in anchors("docs/profile.md")
    assert slug("Backward: few keys, `d` = 64") == "backward-few-keys-d--64"
