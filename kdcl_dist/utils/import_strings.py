"""Import strings: `package.module:attribute` names an object outside this package.

Those of the module `object`, as `object:small`, name objects of a call in Python (`kdcl_dist.utils.objects`).
"""

from __future__ import annotations

import importlib
import re
import signal
from typing import Any

from kdcl_dist.errors import one_line
from kdcl_dist.utils.objects import MODULE, find_object, knows

__all__ = ["IMPORT_STRING", "is_import_string", "load_object", "names_object"]

#: The regular expression of an import string.
IMPORT_STRING = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"


def is_import_string(text: str) -> bool:
    """Whether `text` has the form `package.module:attribute`; paths and URIs do not."""
    return re.fullmatch(IMPORT_STRING, text) is not None


def names_object(text: str) -> bool:
    """Whether an import string names an object of a call in Python, known here or not."""
    return text.startswith(f"{MODULE}:")


def load_object(text: str) -> Any:
    """The object that an import string names.

    Raises:
        ImportError: the form is wrong, the module cannot be imported, the attribute is missing, or the object
            of a call is not known here; the message is one line.
    """
    if not is_import_string(text):
        raise ImportError(f"{text!r} is not of the form package.module:attribute")
    if names_object(text) or knows(text):
        return find_object(text)
    module_name, _, attribute = text.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except BaseException as error:  # a user's module can raise anything while it is imported
        if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            raise  # Ctrl-C; where the process ignores it, the module itself raised
        raise ImportError(f"{text!r}: importing {module_name!r} failed: {one_line(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ImportError(f"{text!r}: {module_name!r} has no attribute {attribute!r}")
        found = getattr(found, part)
    return found
