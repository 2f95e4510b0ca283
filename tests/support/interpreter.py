"""The mark of tests that run the kernels in Triton's interpreter."""

from __future__ import annotations

import pytest

from entropy_attn.kernels.common.support import interpreting

# Triton reads the variable when it is imported, so a test cannot set it for itself.
needs_interpreter = pytest.mark.skipif(not interpreting(), reason="needs Triton's interpreter: TRITON_INTERPRET=1")
