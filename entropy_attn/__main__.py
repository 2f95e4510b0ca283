"""`python -m entropy_attn` is `entropy-attn`."""

from __future__ import annotations

import sys

from entropy_attn.cli import main

sys.exit(main())
