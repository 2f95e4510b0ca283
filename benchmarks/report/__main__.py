"""`python -m benchmarks.report` writes the measured tables of the documents."""

import sys

from benchmarks.report.documents import main

sys.exit(main())
