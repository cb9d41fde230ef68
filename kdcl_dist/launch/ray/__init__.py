"""Training on a Ray cluster, by Ray Train."""
