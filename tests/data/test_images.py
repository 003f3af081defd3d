from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import GREY, LIMIT, RGB, colour, encode, noise, profile
from PIL import Image

from diffinf.config import DataConfig
from diffinf.data import open_dataset
from diffinf.data.images import (
    UnreadableImageError,
    decode_image,
    image_header,
    max_file_bytes,
    reencode,
    square,
)


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


def test_a_line_of_pixels_is_refused() -> None:
    strip = encode(Image.new("1", (1, 70_000)))
    with pytest.raises(UnreadableImageError, match="side of more than 65535"):
        decode_image(strip, max_pixels=50_000_000)


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


ANIMATION = {"save_all": True, "append_images": [GREY.convert("RGB")]}
FILES: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "png": (RGB, "PNG", {}),
    "png palette": (RGB.convert("P"), "PNG", {}),
    "png 16 bit": (Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257), "PNG", {}),
    "jpeg": (RGB, "JPEG", {}),
    "jpeg progressive": (RGB, "JPEG", {"progressive": True}),
    "jpeg restarts": (RGB, "JPEG", {"restart_marker_blocks": 1}),
    "jpeg cmyk": (RGB.convert("CMYK"), "JPEG", {}),
    "webp": (RGB, "WEBP", {}),
    "webp lossless": (RGB, "WEBP", {"lossless": True}),
    "webp animation": (RGB, "WEBP", ANIMATION),
    "gif": (GREY, "GIF", {}),
    "gif animation": (GREY, "GIF", ANIMATION),
    "bmp": (RGB, "BMP", {}),
    "tiff": (RGB, "TIFF", {}),
    "tiff deflate": (RGB, "TIFF", {"compression": "tiff_deflate"}),
    "ppm": (RGB, "PPM", {}),
    "jpeg 2000": (RGB, "JPEG2000", {}),
    "jpeg 2000 tiles": (RGB, "JPEG2000", {"tile_size": (8, 8)}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_refused_or_shows_the_whole_image(name: str) -> None:
    image, kind, options = FILES[name]
    data = encode(image, kind, **options)
    whole = np.asarray(decode_image(data, max_pixels=LIMIT))
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for end in range(len(data)):
            try:
                pixels = decode_image(data[:end], max_pixels=LIMIT)
            except UnreadableImageError:
                refused += 1
            else:  # what is missing came after the pixels
                np.testing.assert_array_equal(np.asarray(pixels), whole)
    assert refused > 0.9 * len(data)


def test_a_file_with_more_bytes_than_its_pixels_can_need_is_refused() -> None:
    data = encode(RGB)
    with pytest.raises(UnreadableImageError, match="bytes, see max_pixels"):
        decode_image(data + bytes(max_file_bytes(LIMIT)), max_pixels=LIMIT)


def test_sixteen_bit_colour_and_grey_with_alpha() -> None:
    # Pillow cannot write 16-bit RGB: a PPM with a maximum of 65535 is one.
    values = (np.arange(4 * 4 * 3) * 1000).astype(">u2").reshape(4, 4, 3)
    image = decode_image(b"P6 4 4 65535\n" + values.tobytes(), max_pixels=LIMIT)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image) - values / 257).max() <= 1
    pixels = np.zeros((4, 4, 2), dtype=np.uint8)
    pixels[:2, :, 1] = 255
    image = decode_image(encode(Image.fromarray(pixels, "LA")), max_pixels=LIMIT)
    assert image.mode == "L"
    assert (np.asarray(image) == np.repeat([0, 0, 255, 255], 4).reshape(4, 4)).all()


def swapped_profile() -> bytes:
    """sRGB with red and green exchanged, so that its effect is plain to see."""
    data = bytearray(profile("sRGB"))
    count = int.from_bytes(data[128:132])
    tags = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    red, green = tags[b"rXYZ"] + 4, tags[b"gXYZ"] + 4
    data[red : red + 8], data[green : green + 8] = data[green : green + 8], data[red : red + 8]
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_colour_profiles_are_ignored_or_applied(kind: str) -> None:
    data = encode(Image.new("RGB", (8, 8), (255, 0, 0)), kind, icc_profile=swapped_profile())
    plain = np.asarray(decode_image(data, max_pixels=LIMIT)).mean(axis=(0, 1))
    managed = np.asarray(decode_image(data, max_pixels=LIMIT, icc=True)).mean(axis=(0, 1))
    assert plain[0] > 250 and plain[1] < 5
    assert managed[1] > 250 and managed[0] < 5


@pytest.mark.parametrize("broken", [b"no profile", b"", swapped_profile()[:300], profile("LAB")])
def test_a_profile_that_does_not_fit_changes_nothing(broken: bytes) -> None:
    for image in (RGB, GREY, RGB.convert("RGBA"), RGB.convert("P")):
        data = encode(image, icc_profile=broken)
        expected = np.asarray(decode_image(data, max_pixels=LIMIT))
        np.testing.assert_array_equal(np.asarray(decode_image(data, max_pixels=LIMIT, icc=True)), expected)


def test_cmyk_with_a_profile_that_does_not_fit_is_converted_without() -> None:
    data = encode(RGB.convert("CMYK"), "JPEG", icc_profile=swapped_profile())
    assert decode_image(data, max_pixels=LIMIT, icc=True).mode == "RGB"


def test_headers() -> None:
    assert image_header(encode(RGB.convert("P"), "GIF")) == ("GIF", "P", 20, 20)
    assert image_header(encode(RGB.convert("CMYK"), "JPEG")) == ("JPEG", "CMYK", 20, 20)
    with pytest.raises(UnreadableImageError, match="header"):
        image_header(b"x")


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


def test_a_dataset_is_read_by_its_profiles_if_asked(tmp_path: Path) -> None:
    for index in range(40):
        place = tmp_path / f"class{index % 2}" / f"{index}.png"
        place.parent.mkdir(exist_ok=True)
        colour = (255, 0, index)
        place.write_bytes(encode(Image.new("RGB", (32, 32), colour), "PNG", icc_profile=swapped_profile()))
    plain, managed = (open_dataset(tmp_path, DataConfig(icc=icc)) for icc in (False, True))
    red = plain.images(size=32, channels=3)[:, 0].float().mean()
    assert red == 255 and managed.images(size=32, channels=3)[:, 0].float().mean() < 100
    assert plain.fingerprint == managed.fingerprint, "the same files"
