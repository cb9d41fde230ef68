"""Pixels of JPEG and PNG files."""

from __future__ import annotations

import io

import pytest
from importing import encoded, png16
from PIL import Image

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


def test_an_image_too_large_for_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="DecompressionBomb"):
        decode(encoded("PNG"), 3)
