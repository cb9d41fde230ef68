"""Kills the process that imports it, as a host without memory does."""

import os
import signal

os.kill(os.getpid(), signal.SIGKILL)
