"""Benchmarks: workloads, competing implementations, and clocks; results must pass a correctness gate before timing."""
