"""Data sets on disk, and each student's batches of them."""
