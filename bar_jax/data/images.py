"""One image: decoding to RGB, the three crops, and the two number ranges."""

import io
import os

import numpy as np
from PIL import Image, ImageOps

# Formats that define white in grey of more than 8 bits.
DEEP_GREY = ("PNG", "PPM", "JPEG2000", "TIFF")
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339  # tags


class DamagedImage(Exception):
    """An image that is listed but cannot be decoded.

    Args:
      name: the file, or the data set's name for the example.
      reason: what the decoder said.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def decode(file: str | os.PathLike | io.BytesIO, name: str) -> Image.Image:
    """Reads a file of any format that Pillow knows, upright (EXIF orientation applied), as RGB.

    Args:
      file: path or open binary file.
      name: what to call the image if it is damaged.

    Returns:
      PIL image of mode RGB, its pixels loaded. See `to_rgb` for other modes.

    Raises:
      DamagedImage: the file is missing, truncated, not an image or of a mode without a range.
    """
    try:
        with Image.open(file) as image:
            raw = image.tile[0][3] if image.format == "PNG" and image.tile else None
            image.load()
            if raw and "transparency" in image.info:
                image = _with_transparency(image, raw, file)
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged bytes
        raise DamagedImage(name, f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB.

    Grey, palette, CMYK and YCbCr as Pillow converts them. Transparent pixels are laid over white.
    Grey of 12 or 16 bits is scaled, white -> 255 (Pillow's own conversion clips it at 255).

    Raises:
      ValueError: signed, floating-point or other numbers of which it is not known what white is.
    """
    if getattr(image, "tag_v2", {}).get(TIFF_SAMPLE_FORMAT, (1,))[0] == 2:
        raise ValueError("signed pixels have no known range")
    if image.mode.startswith("I"):
        return _deep_grey_to_rgb(image)
    if image.mode == "F":
        raise ValueError("mode F: floating-point pixels have no known range")
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, which are all of the range or (TIFF) as many as the file says."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TIFF_BITS, (16,))[0]
    if image.format not in DEEP_GREY or bits > 16:
        raise ValueError(f"mode {image.mode} of {image.format} has no known range")
    values, white = np.asarray(image).astype(np.int64), 2**bits - 1
    clear = values == image.info.get("transparency", -1)
    if tags.get(TIFF_PHOTOMETRIC) == 0:  # WhiteIsZero, which Pillow minds up to 8 bits alone
        values = white - values
    levels = np.where(clear, 255, (values * 255 + white // 2) // white)
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _with_transparency(
    image: Image.Image, raw: str, file: str | os.PathLike | io.BytesIO
) -> Image.Image:
    """A loaded PNG whose one transparent colour (tRNS) Pillow would not find, so that it does.

    Pillow compares the colour as the file has it, of 1 to 16 bits, with pixels of 8 bits.

    Args:
      raw: how the file holds pixels, as Pillow calls it.
      file: that the image was read from.
    """
    colour = image.info["transparency"]
    if image.mode in ("1", "L"):
        bits = 1 if image.mode == "1" else int(raw.partition(";")[2] or 8)
        # Of 1 bit, some versions of Pillow have made 255 of it already.
        image.info["transparency"] = (colour & (2**bits - 1)) * (255 // (2**bits - 1))
    elif raw == "RGB;16B":
        if hasattr(file, "seek"):
            file.seek(0)
        with Image.open(file) as low:  # Pillow drops the lower bytes, unless they are called upper
            low.tile = [(*low.tile[0][:3], "RGB;16L")]
            values = np.asarray(image).astype(np.int64) * 256 + np.asarray(low)
        alpha = np.where((values == colour).all(-1), 0, 255).astype(np.uint8)
        image.putalpha(Image.fromarray(alpha))
        del image.info["transparency"]
    return image


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Resizes so that the shorter side is `size`: bicubic, antialiased (as Pillow always does).

    The longer side is rounded down, as torchvision's `Resize(size)` does.
    """
    width, height = image.size
    shorter = min(width, height)
    return image.resize((width * size // shorter, height * size // shorter), Image.BICUBIC)


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Resizes the shorter side to `size` and cuts out the middle.

    The offset is rounded half to even, as in torchvision's `CenterCrop`, with which the published
    tokenizers are evaluated.

    Returns:
      `[size, size, 3]` uint8.
    """
    image = resize_shorter_side(image, size)
    return _cut(image, size, round((image.height - size) / 2), round((image.width - size) / 2))


def center_crop_adm(image: Image.Image, size: int) -> np.ndarray:
    """The centre crop of ADM, on which class-conditional ImageNet models train and are measured.

    Halves the image with a box filter while its shorter side is at least `2 * size`, resizes the
    shorter side to `size` with a bicubic filter, then cuts out the middle. Source: Dhariwal and
    Nichol 2021, `center_crop_arr` in openai/guided-diffusion, `image_datasets.py`.

    Returns:
      `[size, size, 3]` uint8.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
    return _cut(image, size, (image.height - size) // 2, (image.width - size) // 2)


def random_crop(image: Image.Image, size: int, where: tuple[float, float]) -> np.ndarray:
    """Resizes the shorter side to `size` and cuts out a square at a drawn place.

    Args:
      image: RGB.
      size: side of the square.
      where: two draws from [0, 1), for top and left. Every possible offset is equally likely.

    Returns:
      `[size, size, 3]` uint8.
    """
    image = resize_shorter_side(image, size)
    top = int(where[0] * (image.height - size + 1))
    left = int(where[1] * (image.width - size + 1))
    return _cut(image, size, top, left)


def _cut(image: Image.Image, size: int, top: int, left: int) -> np.ndarray:
    if image.size != (size, size):
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def mirror(images):
    """Flips left and right: `[..., H, W, C]` of numpy or JAX."""
    return images[..., ::-1, :]


def to_float(images):
    """uint8 in [0, 255] -> float32 in [-1, 1], as `x / 127.5 - 1`; numpy or JAX, any shape.

    Call it inside the jitted step: on the CPU it costs as much as decoding a small image.
    """
    return images.astype("float32") / 127.5 - 1.0


def to_uint8(images):
    """Floats in [-1, 1] -> uint8 in [0, 255]; numpy or JAX, any shape.

    `255 * (x + 1) / 2` is clipped and truncated, not rounded: the published sampling scripts
    write their images this way, and rounding shifts every pixel by half a level. Not the inverse
    of `to_float` therefore: a round trip may come out one level lower.
    """
    return (255.0 * (images.astype("float32") + 1.0) / 2.0).clip(0.0, 255.0).astype("uint8")
