import pytest

from diffinf.evaluate.gain import Difference
from diffinf.report.words import Gain, duration, headline, number, percent, plain_figures, signed


def difference(estimate: float, low: float, high: float) -> Difference:
    return Difference(estimate, low, high, 0.01, 3, 500)


def words(gain, resample=None, statuses=None):
    statuses = {"edited": 190, "kept": 122} if statuses is None else statuses
    found = headline(n_train=4000, flagged=312, statuses=statuses, gain=gain, n_test=1500, resample=resample)
    return found, " ".join(found.sentences).replace("\N{NO-BREAK SPACE}", " ")


def test_helped():
    found, text = words(Gain(0.81, 0.84, difference(0.03, 0.01, 0.05)), difference(0.02, 0.001, 0.04))
    assert found.title == "312 of 4,000 training labels look wrong"
    assert (found.verdict, found.verdict_words) == ("helped", "It helped")
    assert "190 faces were edited to show the assigned label; 122 stayed as they were" in text
    assert "on 1,500 test images rose from 0.810" in text and "to 0.840" in text
    assert "+0.030, 95 % interval +0.010 to +0.050" in text
    assert "so it is the editing that helps" in text


def test_what_was_put_back_by_hand_is_not_said_to_have_failed_the_checks():
    statuses = {"edited": 2, "kept": 5, "restored": 3, "dropped": 1}
    _, text = words(Gain(0.81, 0.84, None), statuses=statuses)
    assert (
        "2 stayed as they were, because no edit passed the checks; 1 was dropped; 3 were put back by hand."
        in text
    )


def test_what_shows_its_label_is_not_said_to_have_failed_the_checks():
    _, text = words(Gain(0.81, 0.84, None), statuses={"edited": 2, "kept": 5, "label_fits": 4})
    assert (
        "1 stayed as it was, because no edit passed the checks; 4 stayed as they were, because they" in text
    )
    _, text = words(Gain(0.81, 0.84, None), statuses={"edited": 2, "kept": 1, "label_fits": 1})
    assert "assigned label; 1 stayed as it was, because it shows its label well enough." in text
    assert "no edit passed" not in text


def test_not_helped():
    found, text = words(Gain(0.81, 0.815, difference(0.005, -0.01, 0.02)), difference(0.0, -0.02, 0.02))
    assert found.verdict == "unclear" and "did not help" in found.verdict_words
    assert "cannot be told from no change" in text and "rose" not in text
    assert "not clearly better than simply" in text


def test_made_worse():
    found, text = words(Gain(0.81, 0.78, difference(-0.03, -0.05, -0.01)), difference(-0.02, -0.03, -0.01))
    assert found.verdict == "hurt" and "did not help" in found.verdict_words
    assert "fell from 0.810" in text and "worse than simply" in text


def test_a_gain_without_interval_is_not_called_help():
    found, text = words(Gain(0.5, 0.9, None))
    assert found.verdict == "unclear" and "may be chance" in text


def test_no_flags():
    found = headline(n_train=4000, flagged=0, statuses={}, gain=None, n_test=100)
    assert found.verdict == "nothing"
    assert found.title == "No evidence of wrong labels among 4,000 training samples"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"n_train": None, "flagged": None, "statuses": None}, "stopped before"),
        ({"n_train": 10, "flagged": 2, "statuses": None}, "No face has been edited yet"),
        ({"n_train": 10, "flagged": 2, "statuses": {"edited": 2}}, "whether it helps is open"),
    ],
)
def test_stopped_half_way(state, says):
    found = headline(**state, gain=None, n_test=None)
    assert found.verdict == "unfinished" and says in " ".join(found.sentences)


def test_one_is_one_and_none_is_none():
    assert headline(n_train=9, flagged=1, statuses={}, gain=None, n_test=1).title.startswith("1 of 9")
    assert "labels looks wrong" in headline(n_train=9, flagged=1, statuses={}, gain=None, n_test=1).title
    _, text = words(None, statuses={"edited": 1, "kept": 1, "dropped": 2})
    assert "1 face was edited" in text and "1 stayed as it was" in text and "2 were dropped" in text
    _, text = words(None, statuses={"kept": 3})
    assert "No face was edited; 3 stayed" in text


def test_numbers():
    assert number(-0.5) == "\N{MINUS SIGN}0.50" and number(None) == "\N{EN DASH}"
    assert signed(0.0123) == "+0.012" and percent(0.125) == "12.5\N{NO-BREAK SPACE}%"
    assert [duration(s) for s in (4.2, 41.2, 205.3, 3900)] == ["4.2 s", "41 s", "3 min 25 s", "1 h 5 min"]
    assert plain_figures({"a_b": 0.5, "n": 3000, "name": "x", "on": True}) == [("a b", "0.5"), ("n", "3,000")]


def test_other_arms_alone_leave_it_open_and_not_unfinished() -> None:
    state = {"n_train": 90, "flagged": 16, "statuses": {"kept": 16}, "gain": None, "n_test": 20}
    found = headline(**state, compared=True)  # type: ignore[arg-type]
    assert found.verdict == "unclear" and "not both arms" in found.sentences[-1]
    assert headline(**state).verdict == "unfinished"  # type: ignore[arg-type]
