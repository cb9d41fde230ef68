"""The ensemble of a run's students as one network, here and without this package."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from kdcl_dist import models
from kdcl_dist.config.model import Model, library_of
from kdcl_dist.errors import ExportError
from kdcl_dist.export.standalone import MODULE, call_of_own, call_without_package, module_without_package
from kdcl_dist.models import ensemble
from kdcl_dist.models.ensemble import Ensemble
from kdcl_dist.version import __version__

__all__ = ["build_ensemble", "ensemble_without_package"]

#: What lets a user's network with another output than a tensor take part, as `give_logits` does.
WITH_LOGITS = '''\
def with_logits(network: nn.Module) -> nn.Module:
    """The network, whose calls give the tensor of its logits."""

    def logits(_, __, output):
        return output["logits"] if isinstance(output, dict) else getattr(output, "logits", output)

    network.register_forward_hook(logits)
    return network
'''


def build_ensemble(students: Mapping[str, str | Model], classes: int, channels: int | None) -> Ensemble:
    """A new ensemble with equal weights.

    Args:
        students: the networks in recipes, by student.
        classes: classes of the data.
        channels: channels of the data's images; None: its samples are no images.

    Raises:
        ModelError: as `models.build`.
    """
    return Ensemble({name: models.build(model, classes, channels) for name, model in students.items()})


def ensemble_without_package(
    students: Mapping[str, str | Model], classes: int, channels: int | None
) -> dict[str, str]:
    """Modules by file, of which `MODULE` has a `build()` that returns the ensemble; arguments as above.

    They import torch, the libraries of the students' networks, and the user's own modules.

    Raises:
        ExportError: a student is a network of transformers, whose config would have to lie beside.
    """
    files, imports, calls = {}, set(), []
    for number, (name, model) in enumerate(students.items()):
        if library_of(Model.of(model).name) == "hf":
            raise ExportError(
                f"student {name!r} is a network of transformers: export the ensemble as torch_export or onnx"
            )
        if call := call_without_package(model, classes, channels):
            imports.add(f"import {call.partition('.')[0]}")
        elif module := module_without_package(model, classes, channels):
            file, call = f"student_{number}", f"student_{number}.build()"
            files[f"{file}.py"] = module
            imports.add(f"import {file}")
        else:
            line, call = call_of_own(model, classes, channels)
            call = f"with_logits({call})"
            imports.add(line)
        calls.append(f"        {name!r}: {call},\n")
    files[MODULE] = (
        f"# {ensemble.__name__} of kdcl_dist {__version__} (Apache-2.0). build() gives the network.\n"
        f"{inspect.getsource(ensemble)}\n\n"
        f"{WITH_LOGITS}\n\n"
        "def build() -> nn.Module:\n"
        '    """The ensemble of the weights beside this file."""\n'
        f"{''.join(f'    {line}{chr(10)}' for line in sorted(imports))}\n"
        f"    networks = {{\n{''.join(calls)}    }}\n"
        "    return Ensemble(networks)\n"
    )
    return files
