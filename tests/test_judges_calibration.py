"""Thresholds from labelled answers, the judge that keeps to them, and the command that finds them."""

from __future__ import annotations

import base64
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageColor

from clvr import cli
from clvr.errors import FormatError, MissingFileError, SettingError
from clvr.images import decode_image
from clvr.judges import calibration, labelled, plot
from clvr.judges.calibrated import CalibratedVerifier, Thresholds
from clvr.judges.calibration import Sample, balanced_accuracy, calibrate
from clvr.shapes.labelled import labelled as rendered
from clvr.shapes.verifier import MeasuringVerifier
from clvr.trajectory import Evidence

from .judges_fixtures import CHECKS, Says, picture
from .vlm_fixtures import completion, serving

probabilities = st.floats(0, 1)
sets = st.lists(st.tuples(probabilities, st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({answer for _, answer in rows}) == 2
)


def samples(rows):
    return [Sample(p, answer, str(i)) for i, (p, answer) in enumerate(rows)]


def biased(count=400, shift=0.25, seed=1):
    """A judge that is right about the order and says yes too readily."""
    rng = random.Random(seed)
    for i in range(count):
        answer = rng.random() < 0.5
        yield Sample(min(1.0, max(0.0, rng.gauss(0.65 if answer else 0.35, 0.12) + shift)), answer, str(i // 4))


def test_a_biased_judge_gets_a_better_threshold_with_an_interval_around_it():
    found = calibrate(list(biased()))
    assert 0.65 < found.threshold < 0.85
    assert found.at_half < 0.7 < 0.85 < found.accuracy
    low, high = found.threshold_interval
    assert low <= found.threshold <= high < low + 0.25
    assert found.accuracy_interval[0] <= found.accuracy <= found.accuracy_interval[1]
    assert found.ece > 0.2
    assert found == calibrate(list(biased()))


@given(sets)
def test_no_threshold_is_better_than_the_one_that_is_found(rows):
    found = calibrate(samples(rows), resamples=3)
    assert found.accuracy == pytest.approx(balanced_accuracy(rows, found.threshold))
    for other in (0.0, 0.5, 1.0, *(p for p, _ in rows)):
        assert balanced_accuracy(rows, other) <= found.accuracy + 1e-9
    assert found.accuracy >= 0.5


@given(sets)
def test_bins_hold_every_answer_once(rows):
    bins = calibration.reliability(rows)
    assert sum(b.count for b in bins) == len(rows)
    assert sum(b.yes for b in bins) == sum(answer for _, answer in rows)
    for one in bins:
        assert one.low <= one.mean <= one.high
        assert one.interval[0] <= one.share <= one.interval[1]


def test_the_calibration_error_of_known_cases():
    perfect = samples([(0.0, False), (0.0, False), (1.0, True)])
    assert (calibrate(perfect).ece, calibrate(perfect).brier) == (0, 0)
    sure = samples([(1.0, True), (1.0, False)])
    assert calibrate(sure).ece == pytest.approx(0.5)


@pytest.mark.parametrize("rows", [[], [(0.9, True)], [(0.2, False), (0.1, False)]])
def test_one_kind_of_answer_is_not_enough(rows):
    with pytest.raises(FormatError, match="Both yes and no"):
        calibrate([*samples(rows), Sample(None, True), Sample(None, False)])


@pytest.mark.parametrize(
    ("low", "high", "outcomes"),
    [(0.5, 0.5, "pass fail unjudged"), (0.7, 0.7, "fail fail unjudged"), (0.2, 0.8, "unjudged unjudged unjudged")],
)
def test_probabilities_count_and_words_do_not(low, high, outcomes):
    judge = Says("vlm", {"dog": 0.6, "two": 0.3, "sign": "?"})
    verdict = CalibratedVerifier(judge, Thresholds(low, high)).judge(picture(), CHECKS)
    assert " ".join(r.outcome for r in verdict.results) == outcomes
    assert [r.probability for r in verdict.results] == [0.6, 0.3, None]


def test_what_was_turned_says_so():
    judge = Says("vlm", {"dog": 0.6, "two": "y"})
    dog, two = CalibratedVerifier(judge, Thresholds(0.7, 0.7)).judge(picture(), CHECKS[:2]).results
    assert dog.evidence[0] == Evidence("vlm, calibrated", "A probability of 0.60 counts as no.", says="fail")
    assert (dog.evidence[1].says, dog.evidence[1].overruled) == ("pass", True)
    assert (two.outcome, two.evidence[0].judge) == ("pass", "vlm")


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_thresholds_that_cannot_work_are_refused(low, high):
    with pytest.raises(SettingError):
        Thresholds(low, high)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 9, "low": 0, "high": 1, "judge": ""}', '{"version": 1}'])
def test_a_file_without_thresholds_is_refused(tmp_path, text):
    file = tmp_path / "thresholds.json"
    with pytest.raises(MissingFileError):
        Thresholds.read(file)
    file.write_text(text)
    with pytest.raises(FormatError, match="clvr calibrate"):
        Thresholds.read(file)


def test_the_plot_has_both_charts():
    image = plot.draw(calibrate(list(biased())), "a judge")
    assert image.width == 1100
    assert image.height > 1000


def test_built_in_pictures_are_labelled_as_they_can_be_measured():
    shots = list(rendered(14, seed=3))
    measuring = MeasuringVerifier()
    answers = []
    for image, checks, truth in shots:
        for result in measuring.judge(image, checks).results:
            assert (result.outcome == "pass") == truth[result.check]
            answers.append(truth[result.check])
    assert 0.2 < sum(answers) / len(answers) < 0.8
    assert [image.tobytes() for image, *_ in rendered(2, 3)] == [image.tobytes() for image, *_ in shots[:2]]


def test_labelled_pictures_are_read_by_line(tmp_path):
    rows = [("a.png", "Is it red?", "yes"), ("b.png", "Is it red?", False), ("a.png", "Is it big?", "No")]
    lines = [json.dumps({"image": i, "question": q, "answer": a, "kind": "color"}) for i, q, a in rows]
    (tmp_path / "labels.jsonl").write_text("\n".join([*lines, ""]))
    first, second = labelled.read(tmp_path)
    assert first.path == tmp_path / "a.png"
    assert [c.question for c in first.checks] == ["Is it red?", "Is it big?"]
    assert list(first.answers.values()) == [True, False]
    assert (second.checks[0].kind, second.answers) == ("color", {"q1": False})


@pytest.mark.parametrize("line", ["{", "[]", '{"image": "a.png", "question": "Is it?", "answer": "maybe"}', "{}"])
def test_a_bad_line_is_named(tmp_path, line):
    (tmp_path / "labels.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(FormatError, match="line 2"):
        labelled.read(tmp_path)


SURE = {"red": 0.8, "purple": 0.6, "blue": 0.3}


def answering(body):
    """A server's judge to whom purple is red, though less so."""
    (url,) = [p["image_url"]["url"] for p in body["messages"][1]["content"] if p["type"] == "image_url"]
    pixel = decode_image(base64.b64decode(url.split(",", 1)[1])).getpixel((8, 8))
    sure = min(SURE.items(), key=lambda c: math.dist(ImageColor.getrgb(c[0]), pixel))[1]
    answer = {"check": "q1", "reason": "", "answer": "yes" if sure > 0.5 else "no", "probability": sure, "boxes": []}
    return completion(json.dumps({"results": [answer]}))


@pytest.fixture
def album(tmp_path):
    rows = []
    for index, color in enumerate([*SURE] * 4):
        picture(color).save(tmp_path / f"{index}.png")
        answer = "yes" if color == "red" else "no"
        rows.append({"image": f"{index}.png", "question": "Is it red?", "answer": answer})
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_the_command_finds_a_threshold_that_generate_can_read(album, capsys):
    out = album / "result" / "tiny.json"
    with serving(answering) as server:
        assert cli.main(["calibrate", str(album), "--vlm", server.url, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "threshold            0.700" in said.out
    assert "balanced accuracy    100.0%  (100.0% – 100.0%); 75.0% at 0.5" in said.out
    assert "12: " in said.err
    thresholds = Thresholds.read(out)
    assert (thresholds.low, thresholds.high) == (pytest.approx(0.7), pytest.approx(0.7))
    assert thresholds.judge.startswith("tiny@")
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_a_band_is_left_unjudged(album):
    labels, out = album / "labels.jsonl", album / "tiny.json"
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join([*lines[:-2], lines[-2].replace('"no"', '"yes"'), lines[-1]]))  # one purple is red
    with serving(answering) as server:
        assert cli.main(["calibrate", str(album), "--vlm", server.url, "--band", "--out", str(out)]) == 0
    thresholds = Thresholds.read(out)
    assert thresholds.low < thresholds.high


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--builtin 100"),
        (["--builtin", "0"], "too few"),
        (["nowhere.jsonl"], "There is no file nowhere.jsonl"),
        (["nowhere", "--builtin", "3"], "Labelled pictures are needed"),
        (["--builtin", "3"], "Both yes and no are needed, from a judge that gives probabilities"),
        (["--builtin", "3", "--out", "x.png"], "ends in .json"),
    ],
)
def test_mistakes_are_explained(options, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["calibrate", *options, "--vlm", "builtin"]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
