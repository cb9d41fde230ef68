"""Spare the processes that the tests start the import of torch._dynamo, a second each.

torch's optimisers import it at their first use, and what they ask of it does nothing unless something is
compiled. Whoever asks for more gets the real one.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

NAME = "torch._dynamo"


class _Stub(ModuleType):
    """What optimisers ask of torch._dynamo."""

    @staticmethod
    def graph_break(*_):
        """Nothing is compiled here."""

    @staticmethod
    def disable(function, *_, **__):
        """The function as it is: nothing compiles it."""
        return function


def _real(name):
    """An attribute of the real module, which takes the stub's place; imports of its parts ask its path."""
    if name.startswith("__") and name != "__path__":
        raise AttributeError(name)
    if _Finder in sys.meta_path:
        sys.meta_path.remove(_Finder)
        del sys.modules[NAME]
    return getattr(importlib.import_module(NAME), name)


class _Finder:
    """Finds the stub, and makes it."""

    @classmethod
    def find_spec(cls, name, *_):
        return ModuleSpec(name, cls) if name == NAME else None

    @staticmethod
    def create_module(spec):
        return _Stub(spec.name)

    @staticmethod
    def exec_module(module):
        module.__getattr__ = _real


def install():
    """Let the next import of torch._dynamo find the stub."""
    sys.meta_path.insert(0, _Finder)
