"""The method: ensembles, losses and diagnostics. This package imports torch, NumPy and numba only."""
