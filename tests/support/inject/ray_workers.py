"""Workers of Ray that start sooner: they import less, twice."""

import argparse
import functools
import importlib
import json
import os
import shlex
import sys
import types
from pathlib import Path

#: Is set in a worker, and so in all that it starts.
LIGHT = "KDCL_TEST_WITHOUT_DYNAMO"
DYNAMO = ("_dynamo", "_dynamo.utils")


def start():
    """Make this process a light one, if it is a worker of Ray or of one."""
    _exec_worker()
    if LIGHT in os.environ:
        _leave_out_dynamo()


def _leave_out_dynamo():
    """Let nobody import the compiler for what it does not do: that takes as long as to import torch.

    Optimisers tell it at their first use to leave their functions alone, and torchvision asks whether it can
    compile. Whoever asks for more gets the real one.
    """
    hints, compiler, utils = (types.ModuleType(f"torch.{name}") for name in ("_compile", *DYNAMO))
    hints._disable_dynamo = compiler.disable = _as_it_is
    compiler.__path__, compiler.graph_break = [], lambda: None
    utils.is_compile_supported = lambda device: False
    sys.modules |= {module.__name__: module for module in (hints, compiler, utils)}
    for module in (compiler, utils):
        module.__getattr__ = functools.partial(_from_dynamo, module.__name__)


def _from_dynamo(module, name):
    """Something of the real module."""
    if name.startswith("__"):
        raise AttributeError(name)
    for each in DYNAMO:
        if "__getattr__" in vars(sys.modules.get(f"torch.{each}", sys)):
            del sys.modules[f"torch.{each}"]
    importlib.import_module("torch._dynamo.utils")
    return getattr(sys.modules[module], name)


def _as_it_is(function=None, *arguments, **more):
    return _as_it_is if function is None else function


def _exec_worker():
    """Start a worker of Python as Ray does, by `RuntimeEnvContext.exec_worker`, but without an import of Ray.

    Ray's program imports it, and the worker then does once more. Another program goes on, and so does this
    one where the worker is a special one.
    """
    words = sys.orig_argv[1:]
    if Path(words[0] if words else "").parts[-4:] != ("ray", "_private", "workers", "setup_worker.py"):
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context")
    parser.add_argument("--language")
    options, worker = parser.parse_known_args(words[1:])
    context = json.loads(options.serialized_runtime_env_context or "{}")
    variables = context.get("env_vars") or {}
    special = context.get("override_worker_entrypoint") or "$" in "".join(variables.values())
    if options.language != "PYTHON" or special:
        return
    os.environ |= variables | {LIGHT: "1"}
    command = ["exec", context.get("py_executable") or sys.executable, *map(shlex.quote, worker)]
    os.execvp("bash", ["bash", "-c", " ".join([*(context.get("command_prefix") or []), *command])])
