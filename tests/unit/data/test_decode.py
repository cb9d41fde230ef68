"""Pixels of JPEG and PNG files."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from importing import claimed, encoded, jpegs, png16
from PIL import Image

from kdcl_dist.data import decode as decoding
from kdcl_dist.data.dataset import ArrowDataset, Info
from kdcl_dist.data.decode import decode
from kdcl_dist.data.describe import describe
from kdcl_dist.data.writer import write_dataset

MODES = {"JPEG": ("1", "L", "RGB", "CMYK"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA")}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_all_colours_become_rgb(kind: str, mode: str) -> None:
    assert decode(encoded(kind, mode), 3).shape == (16, 20, 3)
    assert decode(encoded(kind, mode), 1).shape == (16, 20, 1)


def test_palettes_with_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=b"\x00\x80")
    assert decode(buffer.getvalue(), 3).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize(("value", "wanted"), [(0, 0), (257, 1), (25700, 100), (32768, 128), (65535, 255)])
def test_16_bit_images_are_scaled(value: int, wanted: int) -> None:
    assert decode(png16(value), 3).tolist() == [[[wanted] * 3] * 4] * 4
    assert decode(png16(value), 1).tolist() == [[[wanted]] * 4] * 4
    assert abs(int(decode(png16(value, channels=3), 3)[0, 0, 0]) - wanted) <= 1


def test_only_jpeg_and_png_are_decoded() -> None:
    whole = encoded("PNG")
    for data in (b"", b"text", encoded("GIF", "P"), encoded("BMP"), whole[: len(whole) // 2], whole[:40]):
        with pytest.raises(ValueError, match=r".") as caught:
            decode(data, 3)
        assert "\n" not in str(caught.value)
        assert "0x" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(8900, 10001), (13000, 13000), (13500, 13500), (65000, 65000)])
def test_an_image_too_large_for_memory_is_refused(kind: str, size: tuple[int, int]) -> None:
    data = claimed(kind, *size)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r".") as caught:
        decode(data, 3)
    pixels = size[0] * size[1]
    assert str(caught.value) == f"more than 89,000,000 pixels ({pixels:,}); scale it down"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000


def test_no_warning_stands_beside_the_error() -> None:
    """In a process of its own: pytest sets its own filters of warnings."""
    code = "import sys; from kdcl_dist.data.decode import decode; decode(sys.stdin.buffer.read(), 3)"
    ran = subprocess.run(
        [sys.executable, "-c", code], input=claimed("PNG", 13000, 13000), capture_output=True, check=False
    )
    assert b"89,000,000" in ran.stderr
    assert b"DecompressionBombWarning" not in ran.stderr.partition(b"Traceback")[0]


def test_the_largest_image_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, fits in ((320, True), (319, False)):
        monkeypatch.setattr(decoding, "MAX_PIXELS", limit)
        if fits:
            assert decode(encoded("PNG"), 3).shape == (16, 20, 3)
            continue
        with pytest.raises(ValueError, match=r"more than 319 pixels \(320\)"):
            decode(encoded("PNG"), 3)


def by_pillow(monkeypatch: pytest.MonkeyPatch, data: bytes, channels: int) -> np.ndarray:
    with monkeypatch.context() as without:
        without.setattr(decoding, "simplejpeg", None)
        return decode(data, channels)


@pytest.fixture
def decoded_by_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the images that simplejpeg decodes, as it does."""
    shapes, original = [], simplejpeg.decode_jpeg

    def decode_jpeg(*arguments: object) -> np.ndarray:
        pixels = original(*arguments)
        shapes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", decode_jpeg)
    return shapes


@pytest.mark.parametrize("channels", [1, 3])
def test_simplejpeg_gives_the_pixels_of_pillow(
    channels: int, decoded_by_simplejpeg: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)
    rare = [simplejpeg.encode_jpeg(colours, 90, "RGB", subsampling) for subsampling in ("440", "411")]
    for data in (*jpegs(), *rare):
        found, wanted = decode(pa.py_buffer(data), channels), by_pillow(monkeypatch, data, channels)
        np.testing.assert_array_equal(found, wanted)
        assert found.flags.c_contiguous
        assert found.flags.writeable
    coloured = len(jpegs("RGB")) + len(rare) if channels == 3 else 0  # Pillow makes grey of colours
    assert len(decoded_by_simplejpeg) == len(jpegs("L")) + coloured


def test_other_files_are_left_to_pillow(decoded_by_simplejpeg: list[tuple[int, ...]]) -> None:
    for kind, mode in (("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "L")):
        decode(encoded(kind, mode), 3)
    assert decoded_by_simplejpeg == []


def test_two_libraries_read_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where simplejpeg finds another size than Pillow, whose size was checked, it makes no pixels."""

    def bomb(*arguments: object) -> None:
        raise AssertionError

    huge = (60_000, 60_000, "Gray", "444")
    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg_header", lambda data: huge)
    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", bomb)
    assert decode(encoded(), 3).shape == (16, 20, 3)


def test_damaged_files_are_what_they_are_for_pillow_alone() -> None:
    """The same pixels or the same error; in a process of its own, since a decoder may crash."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).parents[2] / "support" / "damaged_jpegs.py", "3000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    decoded, refused = map(int, ran.stdout.split())
    assert decoded > 500
    assert refused > 500


def test_a_user_who_wonders_is_told_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = Info(("a",), "encoded", 3, None, (0.5,) * 3, (0.25,) * 3)
    write_dataset(tmp_path / "a.arrow", [(0, encoded())], info)
    dataset = ArrowDataset(str(tmp_path / "a.arrow"))
    assert dict(describe(dataset))["decoder"] == f"simplejpeg {simplejpeg.__version__} for JPEGs, else Pillow"
    monkeypatch.setattr(decoding, "simplejpeg", None)
    assert "pip install 'kdcl_dist[jpeg]'" in dict(describe(dataset))["decoder"]


def test_pillow_decodes_where_simplejpeg_is_missing() -> None:
    code = "import sys; sys.modules['simplejpeg'] = None; from kdcl_dist.data import decode; "
    code += "print(decode.decode(sys.stdin.buffer.read(), 3).shape, decode.decoders())"
    ran = subprocess.run([sys.executable, "-c", code], input=encoded(), capture_output=True, check=True)
    assert ran.stdout.startswith(b"(16, 20, 3) Pillow; ")
