"""These tests run the kernels in Triton's interpreter, which Triton decides on when it is imported."""

from __future__ import annotations

import os
import sys

if "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"
