"""The WebDataset format: tar files whose members of one name, up to its first dot, are a sample.

`000017.jpg` with `000017.cls`, or with a field of `000017.json`. The members of a sample follow each other.
Reference: https://github.com/webdataset/webdataset, "The WebDataset Format".
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from kdcl_dist.data.decode import MAX_FILE_BYTES
from kdcl_dist.data.importers.archive import reason
from kdcl_dist.data.importers.check import SUFFIXES, UNLABELLED, Item, Rejected
from kdcl_dist.data.importers.class_names import read_class_names
from kdcl_dist.data.importers.label_values import LabelValues, Value, classes_of
from kdcl_dist.data.importers.presence import real_name
from kdcl_dist.data.importers.split_files import identity_of, split_files
from kdcl_dist.data.importers.tar_shard import tar_members
from kdcl_dist.errors import DataError
from kdcl_dist.utils.hidden import is_hidden

__all__ = ["WebDataset"]

SHARDS = (".tar", ".tar.gz", ".tgz")
#: Members that are images, as suffixes without the dot.
IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
#: Bytes of the largest members that are read.
MAX_BYTES = {"cls": 1000, "json": 1_000_000} | dict.fromkeys(IMAGES, MAX_FILE_BYTES)
#: Folders and name up to the first dot, and what follows it.
NAME = re.compile(r"(?P<key>(?:.*/)?[^./]+)\.(?P<suffix>[^/]*)", re.DOTALL)
NUMBER = re.compile(r"-?[0-9]{1,18}")
#: Characters of the longest label.
MAX_LABEL = 1000


class _Member(NamedTuple):
    """A member of a sample; `data` is None if it was not read, `fault` a reason to reject the sample."""

    key: str
    suffix: str
    size: int
    data: bytes | None
    fault: str | None


class _Sample(NamedTuple):
    """A sample: its name, its label, and its image of so many bytes, unless they were not asked for."""

    key: str
    label: Value | None
    image: bytes | Rejected
    size: int


class WebDataset:
    """The images of tar files in the WebDataset format.

    Args:
        source: a tar file, which is the training set; or a folder of them.
        label: field of the json members that is the label, for samples without a cls member.
        train, test: patterns, see `split_files`.
        classes: a file of class names; None: the distinct training labels, sorted, are the classes.

    Raises:
        DataError: files are missing, damaged or hostile, no training sample has a label, or a label is no
            class.
    """

    def __init__(
        self,
        source: Path,
        *,
        label: str,
        train: str = "train*",
        test: str | None = None,
        classes: Path | None,
    ) -> None:
        self.field = label
        self.name = f"WebDataset {real_name(source)!r}"
        self.files = split_files(source, train, test, SHARDS)
        self.class_folders: tuple[Path, ...] = ()
        names = read_class_names(classes) if classes else ()
        values = {split: self._read_labels(split) for split in self.files}
        self.counts = {split: len(found) for split, found in values.items()}
        if not values["train"].distinct:
            raise DataError(
                f"{source}: no sample of the train files has a label: a member .cls, or a member .json with "
                f"the field {label!r} (--label)"
            )
        self.classes, self.label_of = classes_of(values, names, str(source), "a .cls or .json member")
        self.train_labels = values["train"].labels(self.label_of)
        files = [file for files in self.files.values() for file in files]
        self.identity = identity_of(source, files, [label, list(self.files), self.counts])

    def items(self, split: str) -> Iterator[Item]:
        """The samples of a split's files, in the order of the files and of their members."""
        for file in self.files[split]:
            for key, value, image, size in _samples(file, self.field, with_images=True):
                label = UNLABELLED if value is None else self.label_of.get(value, UNLABELLED)
                yield Item(label, f"{file.name} {key}", image, size)

    def _read_labels(self, split: str) -> LabelValues:
        found = LabelValues()
        for file in self.files[split]:
            found.extend(sample.label for sample in _samples(file, self.field, with_images=False))
        if not len(found):
            raise DataError(f"{self.name}: the {split} files hold no samples")
        return found


def _samples(file: Path, field: str, *, with_images: bool) -> Iterator[_Sample]:
    """The samples of a tar file; one whose name was there before is rejected."""
    keys: set[int] = set()
    for key, members in groupby(_members(file, with_images), lambda member: member.key):
        sample = _sample(key, members, field)
        if hash(key) in keys:
            sample = sample._replace(image=Rejected("the file has a sample of this name before"))
        keys.add(hash(key))
        yield sample


def _members(file: Path, with_images: bool) -> Iterator[_Member]:
    """The members that belong to samples: no folders, hidden files, or names without a dot."""
    kinds = {suffix for suffix in MAX_BYTES if with_images or suffix not in IMAGES}

    def wanted(member: tarfile.TarInfo) -> bool:
        """Whether it is a label, or an image that is asked for, and not too large."""
        suffix = _name_parts(member.name)[1]
        return suffix in kinds and member.size <= MAX_BYTES[suffix]

    for member, data in tar_members(file, wanted):
        key, suffix = _name_parts(member.name)
        if key and not member.isdir():
            yield _Member(key, suffix, member.size, data, _fault(member, suffix))


def _name_parts(name: str) -> tuple[str, str]:
    """The sample's name and the suffix in small letters; empty if the member belongs to none."""
    name = name.removeprefix("./")
    found = None if is_hidden(name) else NAME.fullmatch(name)
    return (found["key"], found["suffix"].lower()) if found else ("", "")


def _fault(member: tarfile.TarInfo, suffix: str) -> str | None:
    if not member.isreg() or member.issparse():
        return f"its .{suffix} is no plain file, but a link, a device or the like"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leads out of the archive"
    if member.size > (limit := MAX_BYTES.get(suffix, member.size)):
        return f"its .{suffix} is larger than {limit:,} bytes"
    return None


def _sample(key: str, members: Iterable[_Member], field: str) -> _Sample:
    """The sample of some members, of which at most one of a suffix is in memory."""
    found: dict[str, _Member] = {}
    fault, label = None, None
    for member in members:
        fault = fault or member.fault
        if member.suffix in found:
            fault = fault or f"it has two members .{member.suffix}"
        elif member.suffix in MAX_BYTES:
            found[member.suffix] = member
    images = [found[suffix] for suffix in IMAGES if suffix in found]
    if len(images) != 1:
        fault = fault or (f"it has {len(images) or 'no'} images: members .jpg, .jpeg or .png")
    try:
        label = _label(found, field)
    except (ValueError, RecursionError) as error:
        fault = fault or reason(error)
    size = images[0].size if images else 0
    return _Sample(key, label, Rejected(fault) if fault else images[0].data or b"", size)


def _label(found: dict[str, _Member], field: str) -> Value:
    """The label in a cls member, or else in a json member; `ValueError` if there is none."""
    member = found.get("cls") or found.get("json")
    if member is None or member.data is None:
        raise ValueError("it has no label: a member .cls or .json")
    is_text = member.suffix == "cls"
    text = member.data.decode("utf-8").strip() if is_text else _field(member.data, field)
    if not 0 < len(text) <= MAX_LABEL:
        raise ValueError(f"its label must have 1 to {MAX_LABEL:,} characters (it has {len(text):,})")
    return int(text) if NUMBER.fullmatch(text) else text


def _field(data: bytes, field: str) -> str:
    content = json.loads(data)
    value = content.get(field) if isinstance(content, dict) else None
    if type(value) not in (int, str):
        raise ValueError(f"its .json has no field {field!r} with a whole number or a string")
    return str(value)
