"""Secrets of the environment, which no message may show."""

from __future__ import annotations

import os
import re

__all__ = ["without_environment"]

#: Names of environment variables that hold a secret.
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
#: Credentials in a URI: all before the last "@" of a word.
CREDENTIALS = re.compile(r"://\S*@")
#: Characters of the shortest secret that is looked for.
SHORTEST = 8


def without_environment(text: str) -> str:
    """A text of a tracker's library without the secrets of the environment and without credentials in URIs.

    Such a library may quote the address of its server, with the password of `MLFLOW_TRACKING_URI`.
    """
    values = {value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):  # none is left that was a part of another
        text = text.replace(value, "***")
    return CREDENTIALS.sub("://***@", text)
