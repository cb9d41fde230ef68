"""Initial weights from a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from kdcl_dist.errors import ModelError, one_line

__all__ = ["load_weights"]


def load_weights(model: nn.Module, path: str, fresh: str | None = None) -> None:
    """Load a state_dict, or the `model` entry of a checkpoint's student part, strictly.

    Args:
        model: the network.
        path: the file.
        fresh: name of a layer that keeps its own weights and ignores those of the file; None for no layer.

    Raises:
        ModelError: the file is missing, holds other objects than tensors, or does not fit the network.
    """
    try:
        state = torch.load(Path(path), map_location="cpu", weights_only=True)
        state = state.get("model", state)
        if fresh is not None:
            own = model.get_submodule(fresh).state_dict(prefix=f"{fresh}.")
            state = {name: value for name, value in state.items() if name not in own} | own
        missing, unexpected = model.load_state_dict(state, strict=False)
    except OSError as error:
        raise ModelError(f"weights {path!r} cannot be read: {one_line(error)}") from error
    except RuntimeError as error:  # the second line names the first parameter of another shape
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:2]) or one_line(error)
        raise ModelError(f"weights {path!r} do not fit {type(model).__name__}: {reason}") from error
    except Exception as error:  # a file from outside can raise anything
        raise ModelError(
            f"weights {path!r} are not a file of torch.save(model.state_dict()) with tensors only "
            f"({type(error).__name__})"
        ) from error
    if missing or unexpected:
        shown = [f"without {name}" for name in missing] + [
            f"with {name}, unknown there" for name in unexpected
        ]
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        raise ModelError(f"weights {path!r} do not fit {type(model).__name__}: {'; '.join(shown[:3])}{more}")
