from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from diffinf.config import DataConfig
from diffinf.data import images, open_dataset
from diffinf.data.images import (
    UnreadableImageError,
    decode_array,
    decode_image,
    image_header,
    max_file_bytes,
    reencode,
    square,
)

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


RGB = Image.fromarray((np.asarray(colour(20)) * 0.8 + noise((20, 20, 3)) * 0.2).astype(np.uint8))
GREY = RGB.convert("L")
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


def profile(name: str = "LAB") -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


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


def by_the_plugin(data: bytes) -> Image.Image | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = PngImagePlugin.PngImageFile(io.BytesIO(data))
            image.load()
        except Exception:
            return None
    return image


@settings(max_examples=300, deadline=None)
@given(
    shape=st.sampled_from([(1, 1), (5, 9), (40, 3), (48, 48), (7, 6, 3), (33, 20, 3)]),
    seed=st.integers(0, 99),
    smooth=st.booleans(),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), max_size=3),
)
def test_plain_png_files_decode_as_pillow_decodes_them(
    shape: tuple[int, ...], seed: int, smooth: bool, flips: list[tuple[int, int]]
) -> None:
    pixels = np.sort(noise(shape, seed), axis=1) if smooth else noise(shape, seed)
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "x")
    data = bytearray(encode(Image.fromarray(pixels), pnginfo=info))
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    expected = by_the_plugin(bytes(data))
    try:
        image = decode_image(bytes(data), max_pixels=LIMIT)
    except UnreadableImageError:
        assert expected is None or expected.mode not in ("L", "RGB") or flips
    else:
        assert expected is not None
        if expected.mode == image.mode:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("options", [{"transparency": 0}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01"}])
def test_png_files_with_more_than_pixels_are_left_to_pillow(options: dict[str, Any]) -> None:
    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112] = 3
        options = {"exif": exif}
    image = decode_image(encode(Image.fromarray(np.array([[0, 9]], dtype=np.uint8)), **options), max_pixels=9)
    assert np.asarray(image).tolist() == ([[9, 0]] if "exif" in options else [[255, 9]])


SIMPLEJPEG = pytest.param(
    True,
    marks=pytest.mark.skipif(images.fast_jpeg() is None, reason="without the extra jpeg"),
    id="simplejpeg",
)


@pytest.mark.parametrize("fast", [SIMPLEJPEG, pytest.param(False, id="pillow")])
@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from([(1, 1), (5, 9), (40, 33), (48, 48, 3), (7, 6, 3), (33, 20, 3), (200, 210, 3)]),
    seed=st.integers(0, 99),
    options=st.sampled_from(
        [
            {},
            {"progressive": True},
            {"subsampling": 0},
            {"comment": b"x"},
            {"restart_marker_rows": 1},
            {"quality": 100},
        ]
    ),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), max_size=3),
    cut=st.one_of(st.none(), st.integers(0, 10**6)),
)
def test_plain_jpeg_files_decode_as_pillow_decodes_them(
    fast: bool,
    shape: tuple[int, ...],
    seed: int,
    options: dict[str, Any],
    flips: list[tuple[int, int]],
    cut: int | None,
) -> None:
    data = bytearray(encode(Image.fromarray(noise(shape, seed)), "JPEG", **options))
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    given_bytes = bytes(data if cut is None else data[: cut % len(data)])

    limit = 10 * LIMIT

    def decoded(decode: Callable[..., Any] = decode_image) -> Any:
        try:
            return decode(given_bytes, max_pixels=limit)
        except UnreadableImageError:
            return None

    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(images, "fast_jpeg", lambda: None)
        if not flips and cut is None:
            assert images._plain_jpeg(given_bytes, limit, None, "RGB") is not None
        image, array = decoded(), decoded(decode_array)
        patch.setattr(images, "_plain_jpeg", lambda *_: None)
        expected = decoded()
    assert (image is None) == (array is None) == (expected is None)
    if expected is not None:
        assert image.mode == expected.mode and array.dtype == np.uint8
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
        np.testing.assert_array_equal(array, np.asarray(expected))
        assert image.mode == "L" or image.tobytes("raw", "RGBX") == expected.tobytes("raw", "RGBX")


class Asked:
    """In the place of simplejpeg: takes note of what it is asked for, and answers, or complains as it does."""

    def __init__(self, *, complains: bool) -> None:
        self.complains, self.layouts, self.strict, self.odd = complains, list[str](), True, True

    def decode_jpeg(self, _: bytes, layout: str, *, buffer: np.ndarray, strict: bool) -> np.ndarray:
        self.layouts.append(layout)
        self.strict &= strict
        self.odd &= buffer.ctypes.data % 2 == 1
        if self.complains:
            raise ValueError("Corrupt JPEG data: 1 extraneous bytes before marker 0xd9")
        channels = {"Gray": 1, "RGB": 3, "RGBX": 4}[layout]
        buffer[:] = 7
        return buffer.reshape(20, 20, channels)


def test_a_plain_jpeg_is_for_simplejpeg_and_what_it_complains_of_for_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [encode(RGB, "JPEG"), encode(GREY, "JPEG")]
    monkeypatch.setattr(images, "fast_jpeg", lambda: None)
    by_pillow = [np.asarray(decode_image(data, max_pixels=LIMIT)) for data in files]
    answers, complains = Asked(complains=False), Asked(complains=True)
    for data, expected in zip(files, by_pillow, strict=True):
        monkeypatch.setattr(images, "fast_jpeg", lambda: answers)
        for pixels in (
            decode_array(data, max_pixels=LIMIT),
            np.asarray(decode_image(data, max_pixels=LIMIT)),
        ):
            assert pixels.shape == expected.shape and (pixels == 7).all()
        monkeypatch.setattr(images, "fast_jpeg", lambda: complains)
        np.testing.assert_array_equal(decode_array(data, max_pixels=LIMIT), expected)
    assert answers.layouts == ["RGB", "RGBX", "Gray", "Gray"] and complains.layouts == ["RGB", "Gray"]
    assert answers.strict and answers.odd, "lines at an even address may be written past the cache"
    with pytest.raises(UnreadableImageError):
        decode_image(files[0][:-99], max_pixels=LIMIT)


def test_simplejpeg_is_not_asked_for_what_is_large_or_special(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(complains=True)
    monkeypatch.setattr(images, "fast_jpeg", lambda: asked)
    monkeypatch.setattr(images, "_FAST_PIXELS", 399)
    special = encode(RGB, "JPEG", icc_profile=profile("sRGB")), encode(RGB.convert("CMYK"), "JPEG")
    for data in (encode(RGB, "JPEG"), *special):
        assert decode_array(data, max_pixels=LIMIT).shape == (20, 20, 3)
    with pytest.raises(UnreadableImageError, match="max_pixels = 399"):
        decode_image(encode(RGB, "JPEG"), max_pixels=399)
    many_scans = encode(GREY.crop((0, 0, 19, 20)), "JPEG", progressive=True)
    last = many_scans[many_scans.rindex(b"\xff\xc4") : -2]
    decode_image(many_scans[:-2] + 60 * last + many_scans[-2:], max_pixels=100 * LIMIT)
    assert not asked.layouts
    decode_image(many_scans, max_pixels=LIMIT)
    assert asked.layouts == ["Gray"]


@pytest.mark.skipif(images.fast_jpeg() is None, reason="without the extra jpeg")
def test_threads_decode_the_same() -> None:
    files = [encode(Image.fromarray(noise((30 + n % 7, 41, 3), n)), "JPEG") for n in range(40)]
    expected = [decode_array(data, max_pixels=LIMIT) for data in files]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            found = pool.map(lambda data: decode_array(data, max_pixels=LIMIT), files)
            for pixels, wanted in zip(found, expected, strict=True):
                np.testing.assert_array_equal(pixels, wanted)


def test_jpeg_files_with_more_than_pixels_are_left_to_pillow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = Image.fromarray(noise((64, 64, 3), 0))
    special = [
        encode(picture, "JPEG", exif=exif),
        encode(picture, "JPEG", icc_profile=profile("sRGB")),
        encode(picture.convert("CMYK"), "JPEG"),
        encode(picture, "PNG"),
        b"\xff\xd8" + b"\xff\xe0\0\0" * 9,
    ]
    assert [images._plain_jpeg(data, LIMIT, None, "RGB") for data in special] == [None] * len(special)
    plain = encode(picture, "JPEG")
    assert images._plain_jpeg(plain, LIMIT, 33, "RGB") is not None
    assert images._plain_jpeg(plain, LIMIT, 32, "RGB") is None  # a reduced scale would do
    assert decode_image(plain, max_pixels=LIMIT, least_side=32).size == (32, 32)
    with pytest.raises(UnreadableImageError, match="max_pixels = 4095"):
        images._plain_jpeg(plain, 4095, None, "RGB")


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


def _scans(
    side: int, more: int, after: bytes = b"", *, exif: bool = False, progressive: bool = True
) -> bytes:
    """A grey JPEG whose last scan comes once more `more` times."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"exif": Image.Exif().tobytes()} if exif else {}
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=progressive, **options)
    data = buffer.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * more + data[-2:] + after


@pytest.mark.parametrize("options", [{}, {"exif": True}, {"progressive": False}], ids=str)
@pytest.mark.parametrize("least_side", [None, 16])
def test_a_jpeg_with_thousands_of_scans_is_refused(options: dict[str, bool], least_side: int | None) -> None:
    if options.get("progressive", True):  # else one scan a channel is all there may be
        assert decode_image(_scans(100, 60, **options), max_pixels=2**16).size == (100, 100)
    with pytest.raises(UnreadableImageError, match=r"scans of 100 x 100 pixels are more than 50 passes"):
        decode_image(_scans(100, 3000, **options), max_pixels=2**16, least_side=least_side)


def test_more_than_50_passes_over_the_largest_picture_are_refused() -> None:
    header = _scans(8, 100)
    frame = header.index(b"\xff\xc2") + 5
    lying = header[:frame] + struct.pack(">HH", 7000, 7000) + header[frame + 4 :]
    with pytest.raises(UnreadableImageError, match="more than 50 passes"):
        decode_image(lying, max_pixels=50_000_000)


def test_scans_behind_a_marker_without_a_length_are_counted() -> None:
    data = _scans(100, 3000)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    hidden = data[:second] + b"\xff\x02\xfe\xf0" + data[second:]
    with pytest.raises(UnreadableImageError, match="more than 50 passes"):
        decode_image(hidden, max_pixels=2**16)


def test_what_follows_a_jpeg_or_is_in_a_comment_is_no_scan_of_it() -> None:
    film = b"\xff\xda\0\x08" * 100_000
    expected = np.asarray(decode_image(_scans(64, 0), max_pixels=2**12))
    np.testing.assert_array_equal(np.asarray(decode_image(_scans(64, 0, film), max_pixels=2**12)), expected)
    remark = b"\xff\xfe\xff\xff" + film[: 2**16 - 3]
    remarked = _scans(64, 0)[:2] + remark + _scans(64, 0)[2:]
    np.testing.assert_array_equal(np.asarray(decode_image(remarked, max_pixels=2**12)), expected)


def test_a_simplejpeg_that_cannot_be_imported_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ValueError("numpy.dtype size changed")

    images.fast_jpeg.cache_clear()
    monkeypatch.setattr(images, "import_module", broken)
    try:
        assert images.fast_jpeg() is None
        assert decode_image(encode(RGB, "JPEG"), max_pixels=LIMIT).size == RGB.size
    finally:
        images.fast_jpeg.cache_clear()
