"""Networks of other libraries, with random weights: `torchvision:NAME`, `timm:NAME`, `hf:FOLDER`, `hf:KIND`.

Nothing is downloaded or unpickled: the arguments that would do so are refused.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from kdcl_dist.errors import ModelError
from kdcl_dist.models.imagenet import torchvision_network
from kdcl_dist.utils.extras import load_extra
from kdcl_dist.utils.files import read_regular

__all__ = ["FACTORIES", "check_arguments"]

#: Arguments that the data gives.
SIZES = ("num_classes", "in_chans", "num_labels", "num_channels")
#: Arguments by which a library would load weights, or code.
LOADING = re.compile(r"_|attn_implementation|auto_map|checkpoint_path|weights|\w*pretrained|quantization")
#: Bytes of the largest config.json that is read.
MAX_BYTES = 1_000_000
#: Entries of a config.json that do not shape the network.
IGNORED = re.compile(
    r"_|architectures|auto_map|attn_|experts_|dtype|torch_dtype|quantization|id2label|label2id"
)


def check_arguments(name: str, arguments: Iterable[str]) -> None:
    """Refuse arguments that the data gives, or that would load something.

    Args:
        name: the network in the recipe, for the error message.
        arguments: the names of its arguments.

    Raises:
        ModelError: an argument is refused.
    """
    for argument in arguments:
        if argument in SIZES:
            raise ModelError(f"model {name!r}: the data gives {argument!r}, leave it out")
        if LOADING.match(argument):
            raise ModelError(
                f"model {name!r}: {argument!r} is refused: no library loads weights or code here, give a "
                "file of weights as students.NAME.weights"
            )


def _of_torchvision(network: str, /, num_classes: int, in_channels: int, **arguments: Any) -> nn.Module:
    from torchvision import models

    _check_name(network, models.list_models(module=models), "torchvision.models has no classifier")
    return torchvision_network(network, arguments, num_classes, in_channels)


def _of_timm(network: str, /, num_classes: int, in_channels: int, **arguments: Any) -> nn.Module:
    timm = load_extra("timm")
    if not timm.is_model(network):
        _check_name(network, timm.list_models(), "timm has no network")
    made: nn.Module = timm.create_model(network, num_classes=num_classes, in_chans=in_channels, **arguments)
    return made


def _of_transformers(
    network: str, /, num_classes: int, in_channels: int | None = None, **arguments: Any
) -> nn.Module:
    """A classifier of images, or of text where the samples are no images."""
    transformers = load_extra("transformers")
    task, what = ("Sequence", "text") if in_channels is None else ("Image", "image")
    values = _read_config(network) if Path(network).is_dir() else {"model_type": network}
    kind = values.pop("model_type", None)
    mapping = f"MODEL_FOR_{task.upper()}_CLASSIFICATION_MAPPING_NAMES"
    known = {*getattr(transformers.models.auto.modeling_auto, mapping)}
    known -= {"timm_wrapper"}  # whose name of timm's may stand for a download
    _check_name(str(kind), known, f"no folder with a config.json, and no {what} classifier of transformers:")
    make = transformers.CONFIG_MAPPING[kind]
    if unknown := [name for name in arguments if not hasattr(make(), name)]:
        raise TypeError(f"the config of {kind!r} has no {unknown[0]!r}")
    config = make.from_dict(values | arguments | {"num_labels": num_classes, "return_dict": True})
    if in_channels is not None and hasattr(config, "num_channels"):
        config.num_channels = in_channels
    build = getattr(transformers, f"AutoModelFor{task}Classification").from_config
    made: nn.Module = build(config, trust_remote_code=False, dtype="float32", attn_implementation=None)
    return made


def _read_config(folder: str) -> dict[str, Any]:
    """The values of a folder's config.json that shape the network."""
    values = json.loads(read_regular(Path(folder) / "config.json", MAX_BYTES))
    if not isinstance(values, dict):
        raise ValueError(f"{folder}/config.json is no object of JSON")
    return {name: value for name, value in values.items() if not IGNORED.match(name)}


def _check_name(network: str, known: Iterable[str], problem: str) -> None:
    if network not in (names := list(known)):
        close = difflib.get_close_matches(network, names, n=1)
        raise ValueError(f"{problem} {network!r}{f', did you mean {close[0]!r}?' if close else ''}")


#: By library, what makes a network of a name, for a number of classes and channels.
FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
    "hf": _of_transformers,
}
