"""The ensemble of a run's students as one network, here and without this package."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from kdcl_dist import models
from kdcl_dist.export.standalone import MODULE, call_of_own, call_without_package, module_without_package
from kdcl_dist.models import ensemble
from kdcl_dist.models.ensemble import Ensemble
from kdcl_dist.version import __version__

__all__ = ["build_ensemble", "ensemble_without_package"]


def build_ensemble(students: Mapping[str, str], classes: int, channels: int) -> Ensemble:
    """A new ensemble with equal weights.

    Args:
        students: the networks' names in recipes, by student.
        classes: classes of the data.
        channels: channels of the data.

    Raises:
        ModelError: as `models.build`.
    """
    return Ensemble({name: models.build(model, classes, channels) for name, model in students.items()})


def ensemble_without_package(students: Mapping[str, str], classes: int, channels: int) -> dict[str, str]:
    """Modules by file, of which `MODULE` has a `build()` that returns the ensemble; arguments as above.

    They import torch, torchvision if a student is its network, and the user's own modules.
    """
    files, imports, calls = {}, set(), []
    for number, (name, model) in enumerate(students.items()):
        if call := call_without_package(model, classes, channels):
            imports.add("import torchvision")
        elif module := module_without_package(model, classes, channels):
            file, call = f"student_{number}", f"student_{number}.build()"
            files[f"{file}.py"] = module
            imports.add(f"import {file}")
        else:
            line, call = call_of_own(model, classes, channels)
            imports.add(line)
        calls.append(f"        {name!r}: {call},\n")
    files[MODULE] = (
        f"# {ensemble.__name__} of kdcl_dist {__version__} (Apache-2.0). build() gives the network.\n"
        f"{inspect.getsource(ensemble)}\n\n"
        "def build() -> nn.Module:\n"
        '    """The ensemble of the weights beside this file."""\n'
        f"{''.join(f'    {line}{chr(10)}' for line in sorted(imports))}\n"
        f"    networks = {{\n{''.join(calls)}    }}\n"
        "    return Ensemble(networks)\n"
    )
    return files
