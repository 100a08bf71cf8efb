import io
import struct
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bar_jax.data import images
from bar_jax.data.images import DamagedImage


def grey(values) -> Image.Image:
    """RGB image of grey levels `[H, W]`."""
    return Image.fromarray(np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2))


def bicubic_weights(size_in: int, size_out: int) -> np.ndarray:
    """[size_out, size_in]: Keys' kernel with a = -1/2, widened when shrinking."""
    scale = size_in / size_out
    widened = max(scale, 1.0)
    centres = (np.arange(size_out) + 0.5) * scale
    x = np.abs((np.arange(size_in) + 0.5 - centres[:, None]) / widened)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


# --- crops ---------------------------------------------------------------------------------------


def test_adm_crop_halves_by_block_means():
    # 4x8 blocks of 2x2; each block's mean is its number, so box filter and crop give columns 2..5.
    blocks = np.arange(32).reshape(4, 8) * 4 + 40
    spread = np.array([[-2, 2], [3, -3]])
    pixels = np.kron(blocks, np.ones((2, 2), int)) + np.tile(spread, (4, 8))
    crop = images.center_crop_adm(grey(pixels), 4)
    np.testing.assert_array_equal(crop[..., 0], blocks[:, 2:6])


def test_adm_crop_halves_only_from_twice_the_size():
    # 7 < 2 * 4: no box filter, one bicubic resize from 7 to 4.
    pixels = np.random.default_rng(0).integers(0, 256, (7, 7))
    weights = bicubic_weights(7, 4)
    expected = np.clip(weights @ pixels @ weights.T, 0, 255)
    crop = images.center_crop_adm(grey(pixels), 4)[..., 0]
    assert np.abs(crop - expected).max() <= 1.0


def test_adm_crop_rounds_the_offset_down():
    pixels = np.tile(np.arange(7) * 10, (4, 1))
    np.testing.assert_array_equal(
        images.center_crop_adm(grey(pixels), 4)[0, :, 0], [10, 20, 30, 40]
    )


def test_adm_crop_rounds_the_longer_side():
    # 3x5 -> 4 by 6.67, which is 7 (truncated it would be 6); the middle starts at 1.
    pixels = np.tile([0, 50, 100, 150, 200], (3, 1))
    weights = bicubic_weights(5, 7)
    expected = np.clip(weights @ pixels[0], 0, 255)[1:5]
    crop = images.center_crop_adm(grey(pixels), 4)[0, :, 0]
    assert np.abs(crop - expected).max() <= 1.0


def test_center_crop_rounds_the_offset_half_to_even():
    pixels = np.tile(np.arange(7) * 10, (4, 1))
    np.testing.assert_array_equal(images.center_crop(grey(pixels), 4)[0, :, 0], [20, 30, 40, 50])


def test_resize_is_an_antialiased_bicubic():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 18))
    expected = np.clip(bicubic_weights(12, 4) @ pixels @ bicubic_weights(18, 6).T, 0, 255)
    resized = np.asarray(images.resize_shorter_side(grey(pixels), 4))[..., 0]
    assert resized.shape == (4, 6)
    assert np.abs(resized - expected).max() <= 1.0


@pytest.mark.parametrize("size, expected", [((7, 5), (5, 4)), ((5, 7), (4, 5)), ((3, 3), (4, 4))])
def test_resize_truncates_the_longer_side(size, expected):
    assert images.resize_shorter_side(Image.new("RGB", size), 4).size == expected


@pytest.mark.parametrize("where, left", [(0.0, 0), (0.5, 3), (0.9999, 6)])
def test_random_crop_reaches_both_ends(where, left):
    pixels = np.tile(np.arange(10) * 10, (4, 1))
    crop = images.random_crop(grey(pixels), 4, (0.3, where))
    np.testing.assert_array_equal(crop[0, :, 0], pixels[0, left : left + 4])


def test_random_crop_draws_the_top_first():
    pixels = np.tile(np.arange(10)[:, None] * 10, (1, 4))
    assert images.random_crop(grey(pixels), 4, (0.9999, 0.0))[0, 0, 0] == 60


def test_mirror_flips_left_and_right():
    batch = np.arange(2 * 2 * 3 * 3).reshape(2, 2, 3, 3)
    np.testing.assert_array_equal(images.mirror(batch)[1, 0, 0], batch[1, 0, 2])


# --- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("numpy", [np, jnp])
def test_to_float(numpy):
    floats = images.to_float(numpy.array([0, 51, 255], numpy.uint8))
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, [-1.0, -0.6, 1.0], atol=1e-7)


@pytest.mark.parametrize("numpy", [np, jnp])
def test_to_uint8_clips_and_truncates(numpy):
    pixels = images.to_uint8(numpy.array([-2.0, -1.0, 0.0, 0.999, 1.0, 7.0], numpy.float32))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, [0, 0, 127, 254, 255, 255])


# --- decoding ------------------------------------------------------------------------------------


def saved(image: Image.Image, format: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def first_pixel(file) -> tuple:
    image = images.decode(file, "it")
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_decode_grey():
    assert first_pixel(saved(Image.new("L", (2, 2), 77), "PNG")) == (77, 77, 77)


def test_decode_one_bit():
    assert first_pixel(saved(Image.new("1", (2, 2), 1), "PNG")) == (255, 255, 255)


@pytest.mark.parametrize("value, expected", [(65535, 255), (257 * 3, 3), (257 * 3 + 129, 4)])
def test_decode_16_bit_grey_scales(value, expected):
    pixels = Image.fromarray(np.full((2, 2), value, np.uint16))
    assert first_pixel(saved(pixels, "PNG")) == (expected,) * 3


def png(colour_type: int, rows: np.ndarray) -> io.BytesIO:
    """A PNG of 16-bit channels [H, W, C], which Pillow reads but does not write for C > 1."""
    height, width, _ = rows.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("colour_type, pixel, expected", [
    (0, (65535 * 2 // 3,), (170, 170, 170)),
    (2, (0, 257 * 100, 65535), (0, 100, 255)),
    (4, (257 * 50, 65535), (50, 50, 50)),
    (4, (0, 0), (255, 255, 255)),
    (6, (257 * 100, 0, 65535, 257 * 51), (224, 204, 255)),
])  # fmt: skip
def test_decode_16_bit_png(colour_type, pixel, expected):
    """Grey, RGB, grey and RGB with alpha."""
    rows = np.broadcast_to(np.array(pixel, np.uint16), (2, 2, len(pixel)))
    assert first_pixel(png(colour_type, rows)) == expected


def test_decode_16_bit_grey_of_the_other_byte_order():
    pixels = Image.frombytes("I;16B", (2, 2), np.full((2, 2), 257 * 77, ">u2").tobytes())
    assert first_pixel(saved(pixels, "TIFF")) == (77, 77, 77)


def test_decode_grey_with_alpha_over_white():
    assert first_pixel(saved(Image.new("LA", (2, 2), (100, 51)), "PNG")) == (224, 224, 224)


def test_decode_cmyk_jpeg():
    file = saved(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG", quality=95)
    assert max(first_pixel(file)) <= 2  # full of black ink


def test_decode_palette():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert first_pixel(saved(image, "PNG")) == (10, 200, 30)


def test_decode_transparent_palette_over_white():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert first_pixel(saved(image, "PNG", transparency=1)) == (255, 255, 255)


def test_decode_alpha_over_white():
    # 51 / 255 = 0.2 of the colour and 0.8 of white
    assert first_pixel(saved(Image.new("RGBA", (2, 2), (100, 0, 255, 51)), "PNG")) == (
        224,
        204,
        255,
    )


def test_decode_cmyk():
    # no black: 255 - ink
    assert first_pixel(saved(Image.new("CMYK", (2, 2), (255, 55, 0, 0)), "TIFF")) == (0, 200, 255)


def test_decode_turns_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held turned by 90 degrees
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))  # red, blue
    upright = images.decode(saved(image, "PNG", exif=exif), "it")
    assert upright.size == (1, 2)
    assert upright.getpixel((0, 0)) == (255, 0, 0)


def test_decode_refuses_pixels_without_a_range():
    with pytest.raises(DamagedImage, match="it: .*mode F"):
        images.decode(saved(Image.new("F", (2, 2), 0.5), "TIFF"), "it")


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_decode_names_a_truncated_file(keep):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    file = saved(Image.fromarray(noise), "JPEG")
    with pytest.raises(DamagedImage) as error:
        images.decode(io.BytesIO(file.getvalue()[:keep]), "cat/7.jpg")
    assert error.value.name == "cat/7.jpg"
