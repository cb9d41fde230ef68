"""Initial weights from a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from kdcl_dist.errors import ModelError, one_line
from kdcl_dist.utils.files import check_stored, open_regular

__all__ = ["load_weights"]

#: Entries of a checkpoint that hold the weights.
ENTRIES = ("model", "state_dict", "model_state_dict")
#: Names that DistributedDataParallel or DataParallel, and torch.compile, put before those of the network.
WRAPPERS = ("module", "_orig_mod")


def load_weights(model: nn.Module, path: str, fresh: str | None = None) -> None:
    """Load a state_dict strictly; it may be an entry of a checkpoint, or of a wrapped network.

    A file that ends in .safetensors is one of safetensors, any other of `torch.save`.

    Args:
        model: the network.
        path: the file.
        fresh: name of a layer that keeps its own weights and ignores those of the file; None for no layer.

    Raises:
        ModelError: the file is missing, holds other objects than tensors, or does not fit the network; or
            safetensors is not installed.
    """
    try:
        with _opened(path) as file:
            state = _unwrapped(_read(file, path))
        own = model.get_submodule(fresh).state_dict(prefix=f"{fresh}.") if fresh is not None else {}
        state = _renamed(state, model.state_dict().keys(), own.keys())
        if fresh is not None:
            state = {name: value for name, value in state.items() if name not in own} | own
        missing, unexpected = model.load_state_dict(state, strict=False)
    except ModelError:
        raise
    except (OSError, ImportError) as error:
        raise ModelError(f"weights {path!r} cannot be read: {one_line(error)}") from error
    except RuntimeError as error:  # the second line names the first parameter of another shape
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:2]) or one_line(error)
        raise ModelError(f"weights {path!r} do not fit {type(model).__name__}: {reason}") from error
    except Exception as error:  # a file from outside can raise anything
        raise ModelError(
            f"weights {path!r} are not a file of torch.save(model.state_dict()) with tensors only, or of "
            f"safetensors with that ending ({type(error).__name__})"
        ) from error
    if missing or unexpected:
        sides = [_first(missing, "it is without"), _first(unexpected, "it has the unknown")]
        raise ModelError(
            f"weights {path!r} do not fit {type(model).__name__}: {'; '.join(filter(None, sides))}"
        )


def _unwrapped(state: Any) -> Any:
    """The state_dict in a checkpoint, at any depth of the `ENTRIES`."""
    for name in ENTRIES:
        if isinstance(state.get(name), dict):
            return _unwrapped(state[name])
    return state


def _renamed(state: dict[str, Any], names: Iterable[str], ignored: Iterable[str]) -> dict[str, Any]:
    """The weights under the network's names if only the `WRAPPERS` in their names differ, else as they are.

    Args:
        state: the file's weights by name.
        names: the network's.
        ignored: those of the network that the file may lack.
    """
    own = {_bare(name): name for name in names}
    given = {_bare(name): name for name in state}
    plain = state.keys() <= set(names)
    clear = len(own) == len(set(names)) and len(given) == len(state)
    if plain or not clear or not own.keys() - set(map(_bare, ignored)) <= given.keys() <= own.keys():
        return state
    return {own[bare]: state[name] for bare, name in given.items()}


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _first(names: list[str], what: str) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{what} {names[0]}{more}" if names else ""


def _read(file: BinaryIO, path: str) -> Any:
    """What the file holds, read without any code of it."""
    if not _is_safetensors(path):
        return torch.load(file, map_location="cpu", weights_only=True)
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise ImportError("safetensors is not installed: pip install 'kdcl_dist[export]'") from error
    return load(file.read())


def _is_safetensors(path: str) -> bool:
    return path.endswith(".safetensors")


def _opened(path: str) -> BinaryIO:
    """The file, open, of which it is known that it unpacks to no more than its size."""
    try:
        file = open_regular(Path(path))
        if not _is_safetensors(path):  # whose header is held against the file's size
            check_stored(file)
    except ValueError as error:
        raise ModelError(f"weights {path!r} cannot be read: {error}") from error
    return file
