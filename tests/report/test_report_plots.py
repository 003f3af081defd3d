import base64
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from diffinf.report import pictures, plots


def svg(uri: str) -> str:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/svg+xml;base64"
    text = base64.b64decode(content).decode()
    ElementTree.fromstring(text)
    return text


def image(uri: str) -> Image.Image:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


NASTY = ["<script>", "a & b", "$x^2$", "ä" * 60]
CHARTS = {
    "histogram": lambda: plots.score_histogram(np.arange(50.0), np.arange(50) > 40, 40.5),
    "equal scores": lambda: plots.score_histogram(np.zeros(5), np.zeros(5, dtype=bool), None),
    "classes": lambda: plots.class_bars(NASTY, {"flagged": np.zeros(4), "wrong": np.full(4, 0.3)}),
    "counts": lambda: plots.count_bars(NASTY, [3, 0, 1, 2], "n"),
    "whiskers": lambda: plots.whiskers(
        [plots.Whisker("<b>", 0.5, None), plots.Whisker("c", 0.6, (0.5, 0.7))], "x"
    ),
    "confusion": lambda: plots.confusion(np.eye(4), NASTY),
    "no test image": lambda: plots.confusion(np.full((2, 2), np.nan), ["a", "b"], change=True),
    "many classes": lambda: plots.confusion(np.eye(60), [str(k) for k in range(60)]),
    "calibration": lambda: plots.calibration(np.array([[0.05, 0.1, 30], [0.8, 0.7, 1]])),
    "curve": lambda: plots.precision_recall(np.array([[0, 1], [1, 0.2]]), 0.2, (0.5, 0.6)),
}


@pytest.mark.parametrize("name", sorted(CHARTS))
def test_charts_are_whole_repeatable_and_follow_the_colour_mode(name):
    uri = CHARTS[name]()
    text = svg(uri)
    assert uri == CHARTS[name]()
    assert "prefers-color-scheme:dark" in text and "var(--" in text
    assert not any(f"#0{digit}0{digit}0{digit}" in text for digit in "123456")
    assert "<script" not in text


def test_a_chart_shows_its_counts():
    text = svg(plots.count_bars(["judge", "identity"], [1234, 17], "samples"))
    assert ">1,234<" in text and ">17<" in text and ">judge<" in text


def test_every_bin_of_a_calibration_is_drawn_at_its_place(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_svg", lambda figure: drawn.append(figure) or "")
    bins = np.array([[0.05, 0.1, 30], [0.4, 0.2, 10], [0.8, 0.7, 1]])
    plots.calibration(bins)
    (dots,) = drawn[0].axes[0].collections
    assert np.allclose(dots.get_offsets(), bins[:, :2])
    assert (np.diff(dots.get_sizes()) < 0).all()


def test_pictures_are_lossless_when_small_and_shrunk_when_large():
    grey = np.random.default_rng(0).integers(0, 256, (1, 24, 24), dtype=np.uint8)
    colour = np.random.default_rng(0).integers(0, 256, (3, 200, 200), dtype=np.uint8)
    assert (np.asarray(image(pictures.picture(grey))) == grey[0]).all()
    assert image(pictures.picture(colour)).size == (96, 96)


def test_difference_is_dark_where_nothing_changed():
    before = np.full((3, 8, 8), 100, dtype=np.uint8)
    after = before.copy()
    after[:, :4] = 240
    shown = np.asarray(image(pictures.difference(before, after))).astype(int).sum(axis=-1)
    assert shown[0, 0] > 600 and shown[-1, 0] < 80
