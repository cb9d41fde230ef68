"""A run on its storage: folder, checkpoints, metrics and events."""
