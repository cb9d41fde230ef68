"""Pixels of a JPEG or PNG image.

Shapes: H W image, C channels.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdcl_dist.errors import one_line

try:
    import simplejpeg
except ImportError:  # the extra `jpeg` is not installed
    simplejpeg = None

__all__ = ["MAX_FILE_BYTES", "MAX_PIXELS", "decode", "decoders", "has_colour", "is_grey", "pixels"]

#: The only decoders of Pillow that read a data set's bytes.
FORMATS = ("JPEG", "PNG")
#: What simplejpeg decodes to Pillow's pixels: Pillow's mode of the image, and the wanted channels. The grey
#: that Pillow makes of colours is not the one that a JPEG stores.
USUAL = (("RGB", 3), ("L", 3), ("L", 1))
WHITE_16_BIT = 65535
#: Pixels of the largest image that is decoded: 267 MB in colour. ImageNet's largest has 61 million.
MAX_PIXELS = 89_000_000
#: Bytes of the largest file of such an image: more than its pixels take uncompressed.
MAX_FILE_BYTES = 300_000_000

# Pillow warns of images above a limit of its own, which is a little larger.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(data: Any, channels: int) -> npt.NDArray[np.uint8]:
    """The whole image as uint8 (H, W, C), from any stored colour mode; transparency is dropped.

    Pillow reads the header and decides what is refused; simplejpeg, where it is installed, decodes usual
    JPEGs to the same pixels in less time.

    Args:
        data: the file's bytes (any buffer).
        channels: 1 for grey, 3 for red, green, blue.

    Raises:
        ValueError: the data is no JPEG or PNG, or is damaged, truncated or too large; one line of text. Of an
            image that is too large, only the header was read.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"({image.width * image.height} pixels)")
            fast_HWC = _by_simplejpeg(image, data, channels)
            return pixels(image, channels) if fast_HWC is None else fast_HWC
    except Exception as error:  # decoders raise many types of exception on damaged data
        raise ValueError(_reason(error)) from error


def decoders() -> str:
    """Which libraries decode images in this process, and how JPEGs decode faster if they can."""
    if simplejpeg is None:
        return "Pillow; pip install 'kdcl_dist[jpeg]' decodes JPEGs faster, to the same pixels"
    return f"simplejpeg {simplejpeg.__version__} for JPEGs, else Pillow"


def _by_simplejpeg(image: Image.Image, data: Any, channels: int) -> npt.NDArray[np.uint8] | None:
    """The pixels of a usual JPEG; None: Pillow decodes the file, or says what is wrong with it."""
    if simplejpeg is None or image.format != "JPEG" or (image.mode, channels) not in USUAL:
        return None
    file = memoryview(data).cast("B")
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(file)
        if (width, height) != image.size:  # two headers: the one that Pillow found small has to count
            return None
        found_HWC: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(file, "GRAY" if channels == 1 else "RGB")
    except Exception:  # damaged data, of which libjpeg only warns as well
        return None
    return found_HWC


def pixels(image: Image.Image, channels: int) -> npt.NDArray[np.uint8]:
    """The pixels of an image of any colour mode as `decode` gives them; errors of Pillow pass."""
    pixels = np.array(_eight_bit(image).convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def has_colour(image: Image.Image) -> bool:
    """Whether an image has a colour mode other than shades of grey."""
    return image.mode not in ("1", "L", "LA", "La", "F") and not image.mode.startswith("I")


def is_grey(data: bytes) -> bool:
    """Whether the header of a file that `decode` takes says that the image has no colours."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return not has_colour(image)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip it at 255 instead of scaling
        grey_HW = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey_HW * 255 + WHITE_16_BIT // 2) // WHITE_16_BIT).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")  # for any other mode Pillow warns
    return image


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":  # its message names an object in memory
        return "not a JPEG or PNG image"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        found = re.search(r"\((\d+) pixels\)", str(error))
        size = f" ({int(found[1]):,})" if found else ""
        return f"more than {MAX_PIXELS:,} pixels{size}; scale it down"
    return one_line(error)
