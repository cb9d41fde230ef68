"""What training must know of a torch data set, found in one pass and kept in the cache.

Shapes: N samples, C channels.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from kdcl_dist.data.first_samples import check_finite
from kdcl_dist.data.layout import Layout
from kdcl_dist.data.samples import ALONE, Sample, named
from kdcl_dist.data.sampling import view_seed
from kdcl_dist.data.sources.cache import digest_of, entry, replaced
from kdcl_dist.data.sources.opened import Tell
from kdcl_dist.data.sources.sample_kind import channels_of, why_no_image
from kdcl_dist.data.sources.torch_reader import length, read, targets
from kdcl_dist.data.statistics import Moments
from kdcl_dist.errors import DataError
from kdcl_dist.utils.files import read_regular
from kdcl_dist.utils.random_state import random_state_kept, seed_generators

__all__ = ["Facts", "find_facts"]

#: Samples that stand for the content of a data set, evenly spaced; the first ones are read twice.
PROBES, TWICE = 64, 8
#: Samples that determine mean and deviation where `targets` has all labels.
LOOKED_AT = 10_000
#: Seconds from which on a pass is announced.
LONG_S = 5.0
#: Bytes of the largest module whose text counts.
MAX_MODULE = 16 << 20
#: Digits of mean and deviation that are kept: the order of a sum must not show on another host.
DIGITS = 9


@dataclass(frozen=True)
class Facts:
    """What was found.

    Attributes:
        no_image: why samples are no images; empty if they are.
        labels: of all samples.
        channels: of images; 0 for other samples.
        mean, std: of each feature of the floating-point tensors, by their names; of images, whose one name is
            `ALONE`, of each channel, pixels in [0, 1].
        looked_at: samples that were read.
        fingerprint: a digest of the labels, and of the samples that were read first.
    """

    no_image: str
    labels: list[int]
    channels: int
    mean: dict[str, tuple[float, ...]]
    std: dict[str, tuple[float, ...]]
    looked_at: int
    fingerprint: str

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


_FACTS = TypeAdapter(Facts)


def find_facts(where: str, dataset: Any, tell: Tell) -> tuple[Facts, str]:
    """The facts, from the cache if the data set is as it was, and a text that says from where.

    Args:
        where: the data set, for messages: an import string, or a field of the recipe.
        dataset: the data set.
        tell: takes a line before a pass that takes long.

    Raises:
        DataError: a sample cannot be read, is no `(x, y)`, or differs when it is read again with the same
            seeds; or the cache cannot be written.
    """
    with random_state_kept():
        began = time.monotonic()
        count = length(where, dataset)
        probes = _Probes(where, dataset, count)
        kind = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
        path = entry(
            digest_of("torch", where, kind), digest_of(count, probes.digest, _code(dataset)), ".json"
        )
        if (kept := _kept(path, count)) is not None:
            return kept, f"known from {path}"
        expected_s = (time.monotonic() - began) * count / PROBES
        if expected_s > LONG_S:
            tell(f"{where}: {count:,} samples are looked at for the first time: {expected_s:.0f} s or less")
        facts = _look(where, dataset, count, probes)
        with replaced(path) as temporary:
            temporary.write_text(json.dumps(asdict(facts)))
    looked = (
        f"from {facts.looked_at:,} of {count:,} samples" if facts.looked_at < count else "from all samples"
    )
    return facts, f"found {looked} in {time.monotonic() - began:.1f} s, kept in {path}"


class _Probes:
    """A few samples, evenly spaced.

    Attributes:
        no_image: why samples are no images; empty if all of these are.
        channels: of the images; 3 if they differ.
        digest: of their content.
    """

    def __init__(self, where: str, dataset: Any, count: int) -> None:
        self.no_image, self.channels, digest = "", 0, hashlib.sha256()
        for number, index in enumerate(_spaced(count, PROBES)):
            sample, label = _seeded(where, dataset, index)
            own = _digest(sample, label)
            if number < TWICE and _digest(*_seeded(where, dataset, index)) != own:
                raise DataError(
                    f"{where}: sample {index} differs when it is read again with the same seeds of torch, "
                    "numpy and random: it must not draw from a generator of its own"
                )
            digest.update(own)
            self.no_image = self.no_image or why_no_image(sample)
            if not self.no_image:
                self.channels = max(self.channels, channels_of(sample))
        self.digest = digest.hexdigest()


def _look(where: str, dataset: Any, count: int, probes: _Probes) -> Facts:
    """The facts of a data set from all samples, or from some where `targets` has their labels."""
    labels_N = targets(dataset, count)
    looked: Iterable[int] = range(count) if labels_N is None else _spaced(count, LOOKED_AT)
    found, gathered = {}, _Gathered(0 if probes.no_image else probes.channels)
    for index in looked:
        sample, found[index] = _seeded(where, dataset, index, probes.channels or None)
        if labels_N is not None and labels_N[index] != found[index]:
            raise DataError(
                f"{where}: sample {index} has the label {found[index]}, but targets[{index}] is "
                f"{labels_N[index]}"
            )
        gathered.add(f"{where}: sample {index}", sample)
    labels = [found[index] for index in range(count)] if labels_N is None else labels_N.tolist()
    mean, std, channels = gathered.mean, gathered.std, gathered.channels
    fingerprint = digest_of(probes.digest, labels, mean, std)
    return Facts(probes.no_image, labels, channels, mean, std, len(found), fingerprint)


class _Gathered:
    """What the samples that were read have in common.

    Args:
        channels: of images; 0 for samples that are none.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.layout: Layout | None = None
        self._moments: dict[str, Moments] = {}

    def add(self, where: str, sample: Sample) -> None:
        """Add a sample; `DataError` if it is of another kind than those before, or has NaN."""
        check_finite(where, sample)
        if self.channels:
            self._add_image(where, sample)
            return
        try:
            layout = Layout.of(sample)
            self.layout = layout if self.layout is None else self.layout.joined(layout)
        except ValueError as error:
            raise DataError(
                f"{where} differs from those before: {error}: all must have the same names, types and "
                "shapes, of which the first axis alone may differ"
            ) from error
        for column in filter(lambda each: each.is_floating, self.layout.columns):
            moments = self._moments.setdefault(column.name, Moments(column.features))
            if len(moments.mean_F) != column.features:  # numbers of which there are not as many as before
                moments = self._moments[column.name] = moments.pooled()
            moments.add(named(sample)[column.name].detach().cpu().double().numpy())

    def _add_image(self, where: str, sample: Sample) -> None:
        if (reason := why_no_image(sample)) or channels_of(sample) != self.channels:
            reason = reason or f"it has {channels_of(sample)}"
            raise DataError(f"{where}: no image of {self.channels} channels, as the first ones are: {reason}")
        assert isinstance(sample, Tensor)
        pixels_PC = sample.detach().flatten(1).T.double() / (255 if sample.dtype == torch.uint8 else 1)
        self._moments.setdefault(ALONE, Moments(self.channels)).add(pixels_PC.numpy())

    @property
    def mean(self) -> dict[str, tuple[float, ...]]:
        """See `Facts`."""
        return {name: _rounded(each.mean_F) for name, each in self._moments.items()}

    @property
    def std(self) -> dict[str, tuple[float, ...]]:
        """See `Facts`."""
        found = {name: _rounded(each.std_F) for name, each in self._moments.items()}
        # Of a constant channel 1, as no image may be divided by 0.
        return {name: tuple(x or 1.0 for x in std) if self.channels else std for name, std in found.items()}


def _rounded(values_F: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values_F.tolist())


def _seeded(where: str, dataset: Any, index: int, channels: int | None = None) -> tuple[Sample, int]:
    seed_generators(view_seed(0, 0, index))
    return read(where, dataset, index, channels)


def _digest(sample: Sample, label: int) -> bytes:
    digest = hashlib.sha256(str(label).encode())
    for name, tensor in named(sample).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _code(dataset: Any) -> str:
    """A digest of the module that defines a data set's class: its text may decide what samples are."""
    file = getattr(sys.modules.get(type(dataset).__module__), "__file__", None)
    try:
        return hashlib.sha256(read_regular(Path(file), MAX_MODULE)).hexdigest() if file else ""
    except (OSError, ValueError):
        return ""


def _kept(path: Path, count: int) -> Facts | None:
    try:
        facts = _FACTS.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    scales = [len(values) for found in (facts.mean, facts.std) for values in found.values()]
    whole = scales == [facts.channels] * 2 if facts.channels else facts.mean.keys() == facts.std.keys()
    return facts if whole and len(facts.labels) == count and min(facts.labels) >= 0 else None


def _spaced(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of the numbers below `count`, evenly spaced."""
    numbers: list[int] = np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(int)).tolist()
    return numbers
