"""The method: ensembles, losses and what is measured of them. It imports torch only."""
