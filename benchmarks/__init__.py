"""Measurements: each `bench_<what>.py` prints a table; `python -m benchmarks` writes them to `results/`."""
