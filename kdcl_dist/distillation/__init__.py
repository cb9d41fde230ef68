"""The method: ensembles, losses and diagnostics. This package imports torch and numpy only."""
