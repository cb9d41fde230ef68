"""Pixels of JPEG and PNG files."""

from __future__ import annotations

import io
import resource
import subprocess
import sys

import pytest
from importing import claimed, encoded, png16
from PIL import Image

from kdcl_dist.data import decode as decoding
from kdcl_dist.data.decode import decode

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
