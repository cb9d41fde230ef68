"""What a process that the server has forked does in tests."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection, Listener

from kdcl_dist.utils.process import end_with_parent


def obey(link: Connection, *_: object) -> None:
    """Send the process id; end as asked, or with the launcher."""
    end_with_parent()
    link.send(os.getpid())
    os._exit(link.recv())


def with_folder(link: Connection, *_: object) -> None:
    """Send the process id; listen on a socket, as a student's loaders do."""
    end_with_parent()
    with Listener(family="AF_UNIX"):
        link.send(os.getpid())
        time.sleep(600)
