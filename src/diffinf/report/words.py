"""Figures in words: number formats, and the headline that says what a run found and whether it helped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diffinf.evaluate.gain import Difference

_ABSENT, _MINUS, _SPACE = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"

TINY = "Preset tiny: the figures and pictures of this run mean nothing; it shows that every stage runs."

Verdict = Literal["helped", "unclear", "hurt", "nothing", "unfinished"]

_VERDICTS: dict[Verdict, str] = {
    "helped": "It helped",
    "unclear": "It did not help measurably",
    "hurt": "It did not help: the classifier got worse",
    "nothing": "Nothing to repair",
    "unfinished": "Not finished",
}


@dataclass(frozen=True)
class Gain:
    """Balanced accuracy of two arms on the test images, and their paired difference where there is one."""

    before: float
    after: float
    difference: Difference | None


@dataclass(frozen=True)
class Headline:
    """What the report opens with: a title, a verdict and some sentences."""

    verdict: Verdict
    title: str
    sentences: tuple[str, ...]

    @property
    def verdict_words(self) -> str:
        """The verdict as a reader meets it."""
        return _VERDICTS[self.verdict]


def count(value: float) -> str:
    """A count with thousands set off: 4,000."""
    return f"{value:,.0f}"


def number(value: float | None, digits: int = 2) -> str:
    """A number with a proper minus sign; a dash where there is none."""
    return _ABSENT if value is None else f"{value:.{digits}f}".replace("-", _MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign."""
    return _ABSENT if value is None else f"{value:+.{digits}f}".replace("-", _MINUS)


def percent(value: float | None, digits: int = 1) -> str:
    """A share in 0..1 as a percentage."""
    return _ABSENT if value is None else f"{100 * value:.{digits}f}{_SPACE}%".replace("-", _MINUS)


def span(ends: tuple[float, float] | list[float] | None, digits: int = 3) -> str:
    """An interval as "low to high"."""
    return _ABSENT if ends is None else f"{number(ends[0], digits)} to {number(ends[1], digits)}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 12 s, 4 min 10 s, 1 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def headline(
    *,
    n_train: int | None,
    flagged: int | None,
    statuses: Mapping[str, int] | None,
    gain: Gain | None,
    n_test: int | None,
    resample: Difference | None = None,
    compared: bool = False,
) -> Headline:
    """Say what was found, what was done and whether it helped.

    Args:
        n_train: training samples that were scored, None if scoring has not run.
        flagged: how many of them were flagged.
        statuses: number of flagged samples by status, and of the kept those "label_fits" (spared after a second look)
            and "restored" (put back by hand); None if the repair has not run.
        gain: balanced accuracy without and with the repair, None if nothing was retrained.
        n_test: number of test images.
        resample: paired difference of the repair to the arm "resample".
        compared: whether arms were trained, be it others than these.
    """
    if n_train is None or flagged is None:
        return Headline(
            "unfinished", "No training label has been scored yet", ("The run stopped before that.",)
        )
    if flagged == 0:
        title = f"No evidence of wrong labels among {count(n_train)} training samples"
        return Headline("nothing", title, ("No sample was flagged, so no picture was changed.",))
    looks = "looks" if flagged == 1 else "look"
    title = f"{count(flagged)} of {count(n_train)} training labels {looks} wrong"
    if statuses is None:
        return Headline("unfinished", title, ("No face has been edited yet: the run stopped before that.",))
    sentences = [_done(statuses)]
    if gain is None and compared:
        sentences.append(
            "The last comparison had not both arms, baseline and diffinf: whether it helps is open."
        )
        return Headline("unclear", title, tuple(sentences))
    if gain is None:
        sentences.append("Nothing has been retrained on the repaired data yet, so whether it helps is open.")
        return Headline("unfinished", title, tuple(sentences))
    verdict, sentence = _gained(gain, n_test)
    sentences.append(sentence)
    if resample is not None:
        sentences.append(_against_resample(resample))
    return Headline(verdict, title, tuple(sentences))


def _done(statuses: Mapping[str, int]) -> str:
    back, fits = statuses.get("restored", 0), statuses.get("label_fits", 0)
    edited, kept = statuses.get("edited", 0), statuses.get("kept", 0) - back - fits
    if edited:
        sentence = (
            f"{count(edited)} {_plural(edited, 'face was', 'faces were')} edited to show the assigned label"
        )
    else:
        sentence = "No face was edited"
    if kept:
        stayed = _plural(kept, "stayed as it was", "stayed as they were")
        sentence += f"; {count(kept)} {stayed}, because no edit passed the checks"
    if fits:
        stayed = _plural(
            fits, "stayed as it was, because it shows its", "stayed as they were, because they show their"
        )
        sentence += f"; {count(fits)} {stayed} label well enough"
    for status in ("relabelled", "dropped"):
        if statuses.get(status, 0):
            sentence += f"; {count(statuses[status])} {_plural(statuses[status], 'was', 'were')} {status}"
    if back:
        sentence += f"; {count(back)} {_plural(back, 'was', 'were')} put back by hand"
    return sentence + "."


def _gained(gain: Gain, n_test: int | None) -> tuple[Verdict, str]:
    difference = gain.difference
    where = f" on {count(n_test)} test images" if n_test else ""
    move = (
        f"from {number(gain.before, 3)} (trained on the data as given) to {number(gain.after, 3)} (repaired)"
    )
    if difference is None:
        text = f"Balanced accuracy{where} went {move}; no interval can be given, so this may be chance."
        return "unclear", text
    ends = f"{signed(difference.low)} to {signed(difference.high)}"
    interval = f"{signed(difference.estimate)}, 95{_SPACE}% interval {ends}"
    if difference.low > 0:
        return "helped", f"Balanced accuracy{where} rose {move}: {interval}."
    if difference.high < 0:
        return "hurt", f"Balanced accuracy{where} fell {move}: {interval}."
    return (
        "unclear",
        f"Balanced accuracy{where} went {move}: {interval}, which cannot be told from no change.",
    )


def _against_resample(difference: Difference) -> str:
    """The control that separates editing from merely having fewer wrong pictures."""
    control = "replacing each flagged picture by another one of its label"
    interval = f"{signed(difference.estimate)}, {signed(difference.low)} to {signed(difference.high)}"
    if difference.low > 0:
        return f"The repair is also better than {control} ({interval}), so it is the editing that helps."
    if difference.high < 0:
        return f"The repair is worse than simply {control} ({interval})."
    return f"The repair is not clearly better than simply {control} ({interval})."


def _plural(value: int, one: str, many: str) -> str:
    return one if value == 1 else many


def plain_figures(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers of a JSON object, and of objects in it, as rows of a table: (name in words, value)."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += [(f"{name} {inner}", shown) for inner, shown in plain_figures(value)]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        shown = count(value) if isinstance(value, int) else f"{value:.4g}".replace("-", _MINUS)
        rows.append((name.replace("_", " "), shown))
    return rows
