"""Benchmarks: workloads, the implementations that compete at them, and a clock that starts after a correctness gate."""
