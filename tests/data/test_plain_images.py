"""PNG and JPEG files that say nothing special, which are decoded without Pillow's plugins."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import GREY, LIMIT, RGB, encode, noise, profile
from PIL import Image, PngImagePlugin

from diffinf.data import images
from diffinf.data.images import (
    UnreadableImageError,
    decode_array,
    decode_image,
)


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
    if options.get("progressive", True):  # else there may be no scan beside the first, which has all channels
        assert decode_image(_scans(100, 60, **options), max_pixels=2**16).size == (100, 100)
    with pytest.raises(UnreadableImageError, match=r"scans of 100 x 100 pixels are more than 50 passes"):
        decode_image(_scans(100, 3000, **options), max_pixels=2**16, least_side=least_side)


def test_the_shortest_scans_are_counted() -> None:
    """Each in ten bytes, as none can be shorter, and as many as are just too many or just not."""
    most = 50 * (2**16 + images._PASS_COST) // (100 * 100 + images._PASS_COST)
    shortest = b"\xff\xda\0\x08\x01\x01\0\0\x3f\x10"
    images._check_passes(b"\xff\xd8" + shortest * most + b"\xff\xd9", 100, 100, 2**16)
    with pytest.raises(UnreadableImageError, match="more than 50 passes"):
        images._check_passes(b"\xff\xd8" + shortest * (most + 1) + b"\xff\xd9", 100, 100, 2**16)


@pytest.mark.skipif(images.fast_jpeg() is None, reason="the extra jpeg is not installed")
def test_many_scans_are_not_decoded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not progressive may have many too, if its first has a part of the channels."""
    asked: list[int] = []
    monkeypatch.setattr(images, "_by_simplejpeg", lambda *given: asked.append(len(given[1])))
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(buffer, "JPEG")
    plain = buffer.getvalue()
    at = plain.index(b"\xff\xda")
    part = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"  # of the first channel alone
    for data, expected in ((plain, 1), (plain[:at] + part * 60 + plain[at:], 0)):
        asked.clear()
        images._plain_jpeg(data, 2**16, None, "RGB")
        assert len(asked) == expected


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
