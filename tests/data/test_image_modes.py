"""Every bit depth, mode and transparency that Pillow opens, against what the file's bytes say.

The files are put together here from their values, and what is expected of these is computed by the
formats' definitions.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bar_jax.data.images import DamagedImage, decode

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # PNG's colour types
PLTE = np.array([[10, 20, 30], [40, 50, 60], [200, 100, 0], [250, 255, 5]], np.uint8)


def pixels(file: bytes) -> np.ndarray:
    """The only row of an image, [W, 3]."""
    return np.asarray(decode(io.BytesIO(file), "it"))[0].astype(int)


def packed(values: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Values [W, C] as a row of a file."""
    if bits % 8 == 0:
        return values.astype(f"{order}u{bits // 8}").tobytes()
    digits = values.reshape(-1, 1) >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(digits.astype(np.uint8)).tobytes()


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours [W, 3 or 1] in [0, 1] and alpha [W, 1] -> levels [W, 3]."""
    return np.broadcast_to(255 * (colour * alpha + 1 - alpha), (len(colour), 3))


def some(bits: int, channels: int, width: int = 16) -> np.ndarray:
    """Values [W, C] with both ends of the range among them."""
    values = np.random.default_rng(bits).integers(0, 2**bits, (width, channels))
    values[0], values[1] = 0, 2**bits - 1
    return values


# --- PNG -----------------------------------------------------------------------------------------


def png(colour_type: int, bits: int, values: np.ndarray, *, trns: bytes = b"") -> bytes:
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", len(values), 1, bits, colour_type, 0, 0, 0))]
    parts += [chunk(b"PLTE", PLTE.tobytes())] * (colour_type == PALETTE)
    parts += [chunk(b"tRNS", trns)] * bool(trns)
    parts += [chunk(b"IDAT", zlib.compress(b"\0" + packed(values, bits))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("clear", [None, 0, 1, 2, -1])
@pytest.mark.parametrize(
    ("colour_type", "bits"),
    [(GREY, 1), (GREY, 2), (GREY, 4), (GREY, 8), (GREY, 16), (RGB, 8), (RGB, 16)],
)
def test_png_with_a_transparent_colour(colour_type, bits, clear):
    """`clear` is the pixel whose colour is transparent."""
    values = some(bits, 3 if colour_type == RGB else 1)
    values[2] = values[-1] // 3  # like it in the upper byte alone
    trns = b"" if clear is None else values[clear].astype(">u2").tobytes()
    alpha = np.ones((len(values), 1))
    if clear is not None:
        alpha[(values == values[clear]).all(1)] = 0
    expected = over_white(values / (2**bits - 1), alpha)
    file = png(colour_type, bits, values, trns=trns)
    assert np.abs(pixels(file) - expected).max() < (1 if bits == 16 else 0.01)  # RGB's lower byte


def test_png_pixels_that_differ_from_the_transparent_colour_in_the_last_bit_stay():
    values = np.array([[257, 514, 771], [257, 514, 770]])
    file = png(RGB, 16, values, trns=values[0].astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(file), [[255, 255, 255], [1, 2, 3]])


@pytest.mark.parametrize("trns", [b"", b"\0", b"\xff\x33", b"\x80\xff\0\x11"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_palette(bits, trns):
    values = np.arange(min(2**bits, 4)).reshape(-1, 1)
    alpha = np.frombuffer(trns.ljust(4, b"\xff"), np.uint8)[values] / 255
    expected = over_white(PLTE[values[:, 0]] / 255, alpha)
    trns = trns[: 2**bits]
    assert np.abs(pixels(png(PALETTE, bits, values, trns=trns)) - expected).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("colour_type", "channels"), [(GREY_ALPHA, 2), (RGB_ALPHA, 4)])
def test_png_with_alpha(colour_type, channels, bits):
    values = some(bits, channels)
    share = values / (2**bits - 1)
    expected = over_white(share[:, :-1], share[:, -1:])
    assert np.abs(pixels(png(colour_type, bits, values)) - expected).max() <= 1.5


# --- TIFF ----------------------------------------------------------------------------------------


def tiff(photometric, bits, values, *, order="<", extra=None, sample_format=1, data=None) -> bytes:
    """A TIFF of one uncompressed strip."""
    width, channels = values.shape
    data = packed(values, bits, order) if data is None else data
    tags = {
        **{256: (4, [width]), 257: (4, [1]), 258: (3, [bits] * channels), 259: (3, [1])},
        **{262: (3, [photometric]), 273: (4, [8]), 277: (3, [channels]), 278: (4, [1])},
        **{279: (4, [len(data)]), 339: (3, [sample_format] * channels)},
    }
    if extra is not None:
        tags[338] = (3, [extra])
    body, entries = data + b"\0" * (len(data) % 2), b""
    for tag, (kind, numbers) in sorted(tags.items()):
        packed_numbers = struct.pack(order + {3: "H", 4: "I"}[kind] * len(numbers), *numbers)
        if len(packed_numbers) > 4:
            place = struct.pack(f"{order}I", 8 + len(body))
            body += packed_numbers + b"\0" * (len(packed_numbers) % 2)
            packed_numbers = place
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers))
        entries += packed_numbers.ljust(4, b"\0")
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(body))
    return head + body + struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4


@pytest.mark.parametrize(
    ("white_is_zero", "bits", "order"),
    [(True, bits, "<") for bits in (1, 2, 4, 8, 16)]
    + [(False, bits, order) for bits in (1, 2, 4, 8, 16) for order in "<>"]
    + [(False, 12, "<")],
)
def test_tiff_grey(white_is_zero, bits, order):
    values = some(bits, 1)
    share = values / (2**bits - 1)
    expected = np.round(255 * (1 - share if white_is_zero else share)).repeat(3, axis=1)
    file = tiff(0 if white_is_zero else 1, bits, values, order=order)
    np.testing.assert_array_equal(pixels(file), expected)


NO_ALPHA, ASSOCIATED, UNASSOCIATED = 0, 1, 2


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("channels", "bits", "extra"),
    [(3, bits, None) for bits in (8, 16)]
    + [(4, bits, extra) for bits in (8, 16) for extra in (NO_ALPHA, ASSOCIATED, UNASSOCIATED)]
    + [(2, 8, extra) for extra in (NO_ALPHA, ASSOCIATED, UNASSOCIATED)],
)
def test_tiff_with_alpha(channels, bits, extra, order):
    values = some(bits, channels)
    if extra == ASSOCIATED:  # colours are multiplied with it
        values[:, :-1] = values[:, :-1] * values[:, -1:] // (2**bits - 1)
    share = values / (2**bits - 1)
    colour, alpha = (share, 1.0) if extra is None else (share[:, :-1], share[:, -1:])
    if extra == ASSOCIATED:
        expected = np.broadcast_to(255 * (colour + 1 - alpha), (len(values), 3))
    else:
        expected = over_white(colour, alpha if extra == UNASSOCIATED else np.ones((16, 1)))
    file = tiff(1 if channels == 2 else 2, bits, values, order=order, extra=extra)
    assert np.abs(pixels(file) - expected).max() <= 3


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_of_inks(bits):
    values = some(bits, 4)
    share = 1 - values / (2**bits - 1)
    expected = 255 * share[:, :3] * share[:, 3:]
    assert np.abs(pixels(tiff(5, bits, values)) - expected).max() <= 2


@pytest.mark.parametrize(
    ("bits", "sample_format", "reason"),
    [
        (8, 2, "signed pixels"),
        (16, 2, "signed pixels"),
        (32, 1, "mode I of TIFF"),
        (32, 2, "signed pixels"),
        (32, 3, "mode F: floating-point pixels"),
    ],
)
def test_tiff_without_a_range_is_refused(bits, sample_format, reason):
    """Whatever the numbers are: they may be all that the image has of a larger range."""
    file = tiff(1, bits, np.arange(4).reshape(-1, 1), sample_format=sample_format)
    with pytest.raises(DamagedImage, match=f"{reason}.* no known range"):
        pixels(file)


# --- others --------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [1, 7, 100, 255, 1023, 4095, 65535])
@pytest.mark.parametrize(("kind", "channels"), [(b"P5", 1), (b"P6", 3)])
def test_portable_maps_of_any_largest_value(kind, channels, largest):
    values = np.array([0, largest // 3, largest]).repeat(channels)
    data = values.astype(">u2" if largest > 255 else "u1").tobytes()
    found = pixels(kind + b"\n3 1\n%d\n" % largest + data)
    assert np.abs(found[:, 0] - [0, 255 * (largest // 3) / largest, 255]).max() <= 1


def test_numbers_of_astronomers_are_refused():
    """FITS: 16-bit numbers of any unit."""
    cards = ["SIMPLE  =                    T", "BITPIX  =                   16",
             "NAXIS   =                    2", "NAXIS1  =                    2",
             "NAXIS2  =                    1", "END"]  # fmt: skip
    head = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    with pytest.raises(DamagedImage, match="mode I;16 of FITS has no known range"):
        pixels(head + b"\0\1\0\2".ljust(2880, b"\0"))


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *(("webp", mode) for mode in ("RGB", "RGBA")),
        *(("tga", mode) for mode in ("1", "L", "LA", "RGB", "RGBA")),
        *(("bmp", mode) for mode in ("1", "L", "RGB")),
        *(("jp2", mode) for mode in ("L", "LA", "RGB", "RGBA", "I;16")),
        *(("sgi", mode) for mode in ("L", "RGB", "RGBA")),
        *(("ico", mode) for mode in ("RGBA",)),
        *(("dds", mode) for mode in ("L", "LA", "RGB", "RGBA")),
    ],
)
def test_lossless_formats_of_pillow(tmp_path, suffix, mode):
    """What Pillow writes is read as what was written."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    bits = {"1": 1, "I;16": 16}.get(mode, 8)
    values = np.tile(some(bits, channels), (16, 1, 1))
    kind = {"1": bool, "I;16": np.uint16}.get(mode, np.uint8)
    image = Image.fromarray(values.squeeze().astype(kind), None if mode in ("1", "I;16") else mode)
    options = {"webp": dict(lossless=True, exact=True), "ico": dict(sizes=[(16, 16)])}
    image.save(tmp_path / f"a.{suffix}", **options.get(suffix, {}))
    share = values[0] / (2**bits - 1)
    alpha = share[:, -1:] if mode.endswith("A") else np.ones((16, 1))
    expected = over_white(share[:, :-1] if mode.endswith("A") else share, alpha)
    found = pixels((tmp_path / f"a.{suffix}").read_bytes())
    assert np.abs(found - expected).max() <= 2
