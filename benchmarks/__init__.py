"""Measurements; README.md lists questions and scripts. A package, so that `python -m benchmarks...` finds it."""
