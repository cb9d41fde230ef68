"""Hangs the process that imports it, as a file system that does not answer does."""

import time

time.sleep(600)
