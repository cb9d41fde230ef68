"""CSV files as spreadsheets write them: other encodings than UTF-8, and cells that are empty."""

from __future__ import annotations

from pathlib import Path

import pytest
from importing import encoded
from importing import refused as import_refused

from kdcl_dist.data.dataset import ArrowSamples
from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.errors import DataError

TEXT = "größe,label\n1,Käse\n2,Öl\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize(
    ("text", "encoding", "place"),
    [
        (TEXT, "cp1252", "0xf6 in line 1"),
        (TEXT.replace("größe", "width"), "latin-1", "0xe4 in line 2"),
        (TEXT.replace("größe", "width").replace("Käse", "cheese"), "latin-1", "0xd6 in line 3"),
        ("width,name,label\n1,Käse,a\n2,x,b\n", "latin-1", "0xe4 in line 2"),
        ("width,name,label\n1,x,a\n" * 1 + "1,x,a\n" * 99_999 + "2,é,b\n", "cp1252", "0xe9 in line 100002"),
        (TEXT, "utf-16", "0xff in line 1"),
        ("\ufeff" + TEXT, "utf-16-be", "0xfe in line 1"),
    ],
)
def test_other_encodings_are_refused(
    tmp_path: Path, suffix: str, text: str, encoding: str, place: str
) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(text.replace(",", "\t" if suffix == ".tsv" else ",").encode(encoding))
    words = f"cannot be read as {suffix[1:]}: ValueError: it is not UTF-8 (byte {place}): save it as UTF-8"
    with pytest.raises(DataError) as caught:
        open_dataset(str(path))
    assert str(caught.value) == f"{path}: {words}"
    import_refused("table", path, words)


def test_bytes_in_a_cell_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'image,label\n"' + encoded("PNG").replace(b'"', b"'") + b'",a\n')
    with pytest.raises(DataError, match=r"it is not UTF-8 \(byte 0x89 in line 2\)|CSV parse error"):
        open_dataset(str(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf8_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(TEXT.encode(encoding))
    found = open_dataset(str(path))
    assert isinstance(found, ArrowSamples)
    assert found.classes == ("Käse", "Öl")
    assert [found.sample(row).item() for row in range(2)] == [1, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize("cell", ["", " ", '""', '" \t"'])
def test_an_empty_label_is_no_class(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"a,label\n1,cat\n2,{cell}\n3,dog\n")
    words = "column 'label' is empty in row 1: fill it, or leave the row out"
    with pytest.raises(DataError) as caught:
        open_dataset(str(path))
    assert str(caught.value) == f"{path}: {words}"
    import_refused("table", path, words)
