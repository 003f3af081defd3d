from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from diffinf.data.images import UnreadableImageError, decode_image, reencode, square

LIMIT = 10_000


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def colour(size: int = 24) -> Image.Image:
    """A smooth RGB image, kept well by lossy formats."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 255
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def test_grey_and_rgb_come_back_pixel_for_pixel() -> None:
    for shape, channels in (((20, 20), 1), ((20, 20, 3), 3)):
        pixels = noise(shape)
        image = decode_image(encode(Image.fromarray(pixels)), max_pixels=LIMIT)
        expected = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
        np.testing.assert_array_equal(square(image, size=20, channels=channels), expected)


def test_exif_orientation_is_applied() -> None:
    pixels = noise((10, 16, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image = decode_image(encode(Image.fromarray(pixels), exif=exif), max_pixels=LIMIT)
    np.testing.assert_array_equal(np.asarray(image), np.rot90(pixels, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_image() -> None:
    data = encode(colour(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode_image(data, max_pixels=LIMIT).size == (24, 24)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGB", "WEBP"), ("P", "GIF")],
)
def test_colour_modes_become_rgb(mode: str, kind: str) -> None:
    image = decode_image(encode(colour().convert(mode), kind), max_pixels=LIMIT)
    assert image.mode == "RGB"
    difference = np.abs(np.asarray(image, dtype=float) - np.asarray(colour(), dtype=float))
    assert difference.mean() < 16


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_modes_stay_grey(mode: str) -> None:
    assert decode_image(encode(colour().convert("L").convert(mode)), max_pixels=LIMIT).mode == "L"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(kind: str) -> None:
    values = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    image = decode_image(encode(Image.fromarray(values), kind), max_pixels=LIMIT)
    np.testing.assert_array_equal(np.asarray(image), np.arange(256).reshape(16, 16))


def test_transparency_is_laid_on_white() -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[:4, :, 3] = 255
    image = np.asarray(decode_image(encode(Image.fromarray(pixels)), max_pixels=LIMIT))
    assert (image[:4] == 0).all() and (image[4:] == 255).all()


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode_image(data, max_pixels=LIMIT).convert("L")).max() == 10


def test_a_bomb_is_refused_by_its_header() -> None:
    bomb = encode(Image.new("1", (20_000, 20_000)))
    with pytest.raises(UnreadableImageError, match="max_pixels = 50000000"):
        decode_image(bomb, max_pixels=50_000_000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image", "known format"),
        (encode(Image.fromarray(noise((24, 24))))[:200], "truncated"),
        (encode(colour(64), "JPEG")[:-300], "truncated"),
        (encode(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),
    ],
)
def test_unreadable_bytes_say_why(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        decode_image(data, max_pixels=LIMIT)
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


def test_damaged_files_decode_or_are_refused_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    originals = [
        encode(colour(), "PNG"),
        encode(colour(), "JPEG"),
        encode(colour(), "WEBP"),
        encode(colour(), "GIF"),
        encode(colour(), "BMP"),
        encode(colour().convert("P")),
    ]
    outcomes = {True: 0, False: 0}
    for round_ in range(400):
        data = bytearray(originals[round_ % len(originals)])
        if round_ % 3 == 0:
            data = data[: rng.integers(0, len(data))]
        for _ in range(rng.integers(1, 6) if round_ % 3 else 0):
            data[rng.integers(0, len(data))] ^= 1 << rng.integers(0, 8)
        try:
            pixels = square(decode_image(bytes(data), max_pixels=LIMIT), size=16, channels=3)
        except UnreadableImageError:
            outcomes[False] += 1
        else:
            assert pixels.shape == (3, 16, 16) and pixels.dtype == np.uint8
            outcomes[True] += 1
    assert min(outcomes.values()) > 40


def test_square_takes_the_centre() -> None:
    pixels = np.zeros((16, 48), dtype=np.uint8)
    pixels[:, 16:32] = 200
    assert (square(Image.fromarray(pixels), size=16, channels=1) == 200).all()
    assert (square(Image.fromarray(pixels.T.copy()), size=16, channels=1) == 200).all()


def test_shrinking_is_antialiased() -> None:
    checkerboard = (np.indices((128, 128)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = square(Image.fromarray(checkerboard), size=32, channels=1)
    assert np.abs(small.astype(int) - 127).max() < 12


def test_a_thin_strip_needs_no_huge_canvas() -> None:
    strip = Image.new("L", (1, 5_000_000), 7)
    assert (square(strip, size=64, channels=3) == 7).all()


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".jpg", "JPEG"), (".JPEG", "JPEG"), (".bmp", "BMP"), (".png", "PNG"), (".xyz", "PNG")],
)
def test_a_replaced_file_has_the_format_of_its_name(suffix: str, kind: str) -> None:
    image = Image.open(io.BytesIO(reencode(encode(colour()), suffix)))
    assert image.format == kind
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(colour(), dtype=int)).mean() < 3
