"""Measurements; each is a module to run: `python -m benchmarks.NAME`."""
