"""`python -m entropy_attn` is `entropy-attn`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
