"""Data sets on disk, and each student's own stream of them."""
