"""Views of a limited size: a transform that would make a huge image is refused before the image exists.

A transform runs first on PyTorch's meta device, where images have a size and take no memory. Its random
numbers are the same both times.

Shapes: C channels, H W image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["MAX_PIXELS", "Growth", "check_arguments", "check_size"]

#: Pixels, H x W, of the largest image that a transform may make from a smaller one.
MAX_PIXELS = 4096 * 4096
#: torchvision's transforms whose result can have many times the pixels of the image.
GROWING = (
    *("CenterCrop", "FiveCrop", "Pad", "RandomCrop", "RandomResize", "RandomShortestSize"),
    *("RandomZoomOut", "Resize", "ScaleJitter", "TenCrop"),
)
#: The largest number in the arguments of a transform of torchvision.
LARGEST = dict.fromkeys(GROWING, 10_000) | {"RandomResizedCrop": 4096}
LARGEST_OF_OTHERS = 1_000


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse an argument from which a transform of torchvision would make endless tables, images or rounds.

    Args:
        name: the transform's class.
        arguments: its arguments.

    Raises:
        ValueError: a number is too large; one line of text.
    """
    limit = LARGEST.get(name, LARGEST_OF_OTHERS)
    for key, value in arguments.items():
        if not all(abs(number) <= limit for number in _numbers(value)):
            raise ValueError(f"{key} has a number that is not from {-limit:,} to {limit:,}")


class Growth:
    """The check of one transform's result, before it makes one.

    Args:
        call: the transform.
        arguments: its arguments.
    """

    def __init__(self, call: Any, arguments: Mapping[str, Any]) -> None:
        self.call = copy.copy(call)
        if hasattr(call, "interpolation"):  # it changes no size, and one of them is for Pillow's images only
            self.call.interpolation = _nearest()
        self.largest = max(map(abs, _numbers(arguments)), default=1)

    @classmethod
    def of(cls, name: str, call: Any, arguments: Mapping[str, Any]) -> Growth | None:
        """The check of a transform of torchvision; None where it needs none.

        Args:
            name: the transform's class.
            call, arguments: as for the class.
        """
        return cls(call, arguments) if name in GROWING else None

    def check(self, image: Any) -> None:
        """Raise `ValueError` if the transform makes a huge image from this one, a tensor or Pillow's."""
        shape = _shape(image)
        if len(shape) < 2 or self._cannot_grow(*shape[-2:]):
            return
        state = torch.get_rng_state()
        try:
            with _Limited(type(self.call).__name__, max(MAX_PIXELS, shape[-1] * shape[-2])):
                self.call(torch.empty(shape, dtype=torch.uint8, device="meta"))
        finally:
            torch.set_rng_state(state)

    def _cannot_grow(self, height: int, width: int) -> bool:
        """Whether even the product of all numbers gives no huge image: the usual case of small images."""
        return (self.largest * (height + width + self.largest)) ** 2 <= MAX_PIXELS


def check_size(image: Any, before: Any) -> None:
    """Raise `ValueError` if transforms have made a huge image from a smaller one; both may be Pillow's."""
    if (pixels := _pixels(image)) > MAX_PIXELS and pixels > _pixels(before):
        raise ValueError(_refusal("a transform", *_shape(image)[-2:]))


class _Limited(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, no tensor on the meta device has an H x W of more than `limit`."""

    def __init__(self, name: str, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name, self.limit = name, limit

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """The operator's result."""
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_meta and _pixels(out) > self.limit:
            raise ValueError(_refusal(self.name, *out.shape[-2:]))
        return out


def _refusal(name: str, height: int, width: int) -> str:
    return f"{name} makes an image of {height} x {width} pixels, but none may have more than 4096 x 4096"


def _shape(image: Any) -> tuple[int, ...]:
    """(C, H, W) of a tensor or of an image of Pillow; empty for anything else."""
    if isinstance(image, Tensor):
        return tuple(image.shape)
    return (len(image.getbands()), image.height, image.width) if hasattr(image, "getbands") else ()


def _pixels(image: Any) -> int:
    height, width = (0, 0, *_shape(image))[-2:]
    return height * width


def _numbers(value: Any) -> Iterable[float]:
    """The numbers in an argument, within lists too."""
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(each)


def _nearest() -> Any:
    from torchvision.transforms.v2 import InterpolationMode

    return InterpolationMode.NEAREST
