"""Training on a Ray cluster with Ray Train."""
