"""A student: its network and optimiser, its training loop and its process."""
