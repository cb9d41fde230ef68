"""The initial weights of a detector's backbone: a ResNet-18 of `kdcl export` or of a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor
from torchvision.models import resnet18

from kdcl_dist.errors import DataError, ModelError, UserError, one_line

__all__ = ["Backbone", "read_backbone"]

#: Mean and deviation of ImageNet's training images.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: Files of an export that hold a state_dict.
WEIGHTS = ("model.pt", "state_dict.pt", "model.safetensors")

Channels = Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]


@dataclass(frozen=True)
class Backbone:
    """A network's state without its classifier (None: random weights), and its images' mean and deviation."""

    state: dict[str, Tensor] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


class _Preprocessing(BaseModel):
    """The fields of an export's preprocessing.json that are used here."""

    model_config = ConfigDict(extra="ignore")

    mean: Channels
    std: Annotated[list[Annotated[FiniteFloat, Field(gt=0)]], Field(min_length=3, max_length=3)]


def read_backbone(path: str | Path | None) -> Backbone:
    """Read a backbone.

    Args:
        path: a folder of `kdcl export`, or a file: .pt with a state_dict or a checkpoint's student part,
            or .safetensors. None stands for random weights. Without a preprocessing.json beside the
            weights, mean and deviation are ImageNet's.

    Raises:
        ModelError: the file cannot be read, or is not of torchvision's ResNet-18.
        DataError: preprocessing.json is damaged.
    """
    if path is None:
        return Backbone(None, *IMAGENET)
    file = _weights_of(Path(path))
    state = _check(file, _read(file))
    return Backbone(state, *_normalisation(file.parent / "preprocessing.json"))


def _weights_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in WEIGHTS if (path / name).is_file()]
    if not found:
        raise ModelError(
            f"backbone {str(path)!r} has no {' or '.join(WEIGHTS)}; write it with "
            "`kdcl export RUN --student NAME --format state_dict`"
        )
    return found[0]


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return _read_safetensors(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
        return state.get("model", state) if isinstance(state, dict) else state
    except UserError:
        raise
    except OSError as error:
        raise ModelError(f"backbone {str(file)!r} cannot be read: {one_line(error)}") from None
    except Exception as error:  # a foreign file can raise anything
        raise ModelError(
            f"backbone {str(file)!r} is damaged, or holds more than tensors ({type(error).__name__})"
        ) from None


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise UserError(
            f"backbone {str(file)!r} needs safetensors ({one_line(error)}): pip install 'kdcl_dist[export]'"
        ) from None
    state: dict[str, Tensor] = load(file.read_bytes())
    return state


def _check(file: Path, state: Any) -> dict[str, Tensor]:
    """The state without the classifier, when it is of a ResNet-18 and finite."""
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"backbone {str(file)!r} is not a state_dict")
    wanted = _without_classifier(resnet18().state_dict())
    given = _without_classifier(state)
    wrong = [f"it lacks {name}" for name in wanted if name not in given]
    wrong += [f"it has {name}" for name in given if name not in wanted]
    wrong += [
        f"{name} has shape {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, value in given.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelError(
            f"backbone {str(file)!r} is not a ResNet-18 of torchvision: {'; '.join(wrong[:3])}{more}"
        )
    if bad := [name for name, value in given.items() if not value.isfinite().all()]:
        raise ModelError(f"backbone {str(file)!r}: {bad[0]} has values that are not finite")
    return given


def _without_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def _normalisation(file: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        found = _Preprocessing.model_validate(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return IMAGENET
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        field = ".".join(map(str, item["loc"]))
        raise DataError(f"{file}: {field or 'content'}: {item['msg']} (got {item['input']!r:.60})") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not JSON, or is damaged: {one_line(error)}") from None
    return tuple(found.mean), tuple(found.std)
