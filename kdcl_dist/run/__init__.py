"""A run on its storage: folder, record, checkpoints, metrics and events."""
