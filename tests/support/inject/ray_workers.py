"""Ray starts a worker by a program that imports Ray, for as long as the worker then does once more."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path


def start() -> None:
    """In place of that program do what it does to start a worker of Python: `RuntimeEnvContext.exec_worker`.

    Other programs go on, and so does this one if the worker is to be a special one.
    """
    python, *words = sys.orig_argv
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
    os.environ |= variables
    command = ["exec", context.get("py_executable") or python, *map(shlex.quote, worker)]
    os.execvp("bash", ["bash", "-c", " ".join([*(context.get("command_prefix") or []), *command])])
