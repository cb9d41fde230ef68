"""Ray starts a worker by a program that imports Ray, for as long as the worker then does once more."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path


def start():
    """Do what that program does for a worker of Python, `RuntimeEnvContext.exec_worker`, without the import.

    Another program goes on, and so does this one where the worker is a special one.
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
    os.environ |= variables
    command = ["exec", context.get("py_executable") or sys.executable, *map(shlex.quote, worker)]
    os.execvp("bash", ["bash", "-c", " ".join([*(context.get("command_prefix") or []), *command])])
