"""`python -m benchmarks.report` writes the tables of results into the documents."""

import sys

from benchmarks.report.documents import main

sys.exit(main())
