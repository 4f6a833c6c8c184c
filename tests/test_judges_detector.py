"""Detection as evidence: questions, boxes, colours, and a tiny detector of the real class."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from clvr.errors import MissingFileError, SettingError, WeightsError
from clvr.judges.colors import shares
from clvr.judges.detector import (
    Detection,
    DetectorSettings,
    DetectorVerifier,
    TransformersDetector,
    intersection_over_union,
    suppress,
)
from clvr.judges.questions import COLORS, Colored, Number, Placed, Thing, read
from clvr.trajectory import Check

from . import tiny_detector

LEFT, RIGHT, MIDDLE = (0.05, 0.3, 0.35, 0.7), (0.6, 0.3, 0.95, 0.7), (0.32, 0.3, 0.62, 0.7)


class Finds:
    """Boxes by noun."""

    name = "constructed"

    def __init__(self, **found):
        self.found, self.asked = found, []

    def detect(self, image, noun, threshold):
        self.asked.append(noun)
        return [d for d in (Detection(score, box) for score, box in self.found.get(noun, [])) if d.score > threshold]


def scene(*patches, ground="white"):
    image = Image.new("RGB", (200, 100), ground)
    for box, color in patches:
        ImageDraw.Draw(image).rectangle(tuple(v * (200, 100)[i % 2] for i, v in enumerate(box)), fill=color)
    return image


def outcome(question, image=None, kind="other", **found):
    verdict = DetectorVerifier(Finds(**found)).judge(image or scene(), [Check("c", question, kind)])
    return verdict.results[0].outcome


@pytest.mark.parametrize(
    ("question", "meaning"),
    [
        ("Is there a dog?", Number(Thing("dog"), 1, "at least")),
        ("Are there exactly two red apples?", Number(Thing("apple", "red"), 2)),
        ("Are there three cats in the image?", Number(Thing("cat"), 3)),
        ("Does the image show at least 4 grey boxes?", Number(Thing("box", "gray"), 4, "at least")),
        ("Are there more than two people?", Number(Thing("person"), 3, "at least")),
        ("Are there fewer than two glasses?", Number(Thing("glass"), 1, "at most")),
        ("Is there no person in the picture?", Number(Thing("person"), 0)),
        ("Is a traffic light visible in the scene?", Number(Thing("traffic light"), 1, "at least")),
        ("Is the car red?", Colored(Thing("car"), "red")),
        ("Are the apples green?", Colored(Thing("apple"), "green")),
        ("Is the cup to the left of the plate?", Placed(Thing("cup"), "left", Thing("plate"))),
        ("Is the red ball above a table?", Placed(Thing("ball", "red"), "above", Thing("table"))),
        ("Is there a dog wearing a hat?", None),
        ("Is there a red ball above the table?", None),
        ("Is there a dog and a cat?", None),
        ("Is there a dog running?", None),
        ("Is the mood calm?", None),
        ("Is the cat under the table?", None),
        ("Is the red car blue?", None),
        ("", None),
    ],
)
def test_only_questions_of_a_known_form_are_read(question, meaning):
    assert read(question) == meaning


@given(st.text(max_size=60))
def test_any_text_can_be_asked(text):
    read(text)
    read(f"Are there {text}?")


@pytest.mark.parametrize(
    ("scores", "question", "expected"),
    [
        ([], "Is there a dog?", "fail"),
        ([0.9], "Is there a dog?", "pass"),
        ([0.2], "Is there a dog?", "unjudged"),
        ([0.9, 0.9], "Are there exactly two dogs?", "pass"),
        ([0.9, 0.2], "Are there exactly two dogs?", "unjudged"),
        ([0.9, 0.9, 0.9], "Are there exactly two dogs?", "fail"),
        ([0.9, 0.9, 0.2], "Are there at least two dogs?", "pass"),
        ([0.1, 0.1], "Is there no dog?", "pass"),
        ([0.9, 0.2], "Is there no dog?", "fail"),
        ([0.2], "Is there no dog?", "unjudged"),
        ([0.9, 0.2], "Are there at most two dogs?", "pass"),
    ],
)
def test_a_number_is_told_where_doubtful_boxes_cannot_change_it(scores, question, expected):
    boxes = [LEFT, MIDDLE, RIGHT]
    assert outcome(question, dog=list(zip(scores, boxes, strict=False))) == expected


@pytest.mark.parametrize(
    ("cups", "plates", "expected"),
    [
        ([LEFT], [RIGHT], "pass"),
        ([RIGHT], [LEFT], "fail"),
        ([LEFT], [(0.05, 0.6, 0.36, 0.9)], "unjudged"),
        ([LEFT, RIGHT], [MIDDLE], "unjudged"),
        ([LEFT], [MIDDLE, RIGHT], "pass"),
        ([], [LEFT], "unjudged"),
    ],
)
def test_a_place_is_told_where_all_pairs_agree_beyond_the_margin(cups, plates, expected):
    found = {"cup": [(0.9, box) for box in cups], "plate": [(0.9, box) for box in plates]}
    assert outcome("Is the cup left of the plate?", **found) == expected


def test_above_and_below_go_by_height():
    found = {"lamp": [(0.9, (0.4, 0.0, 0.6, 0.2))], "desk": [(0.9, (0.2, 0.6, 0.8, 0.9))]}
    assert outcome("Is the lamp above the desk?", **found) == "pass"
    assert outcome("Is the lamp below the desk?", **found) == "fail"


RGB = {
    "red": (200, 30, 35), "orange": (245, 140, 30), "yellow": (245, 215, 50), "green": (50, 150, 60),
    "blue": (45, 90, 210), "purple": (135, 55, 180), "pink": (250, 130, 190), "brown": (115, 70, 35),
    "black": (20, 20, 22), "white": (248, 248, 246), "gray": (130, 131, 128),
}  # fmt: skip


@pytest.mark.parametrize("color", COLORS)
def test_plain_colours_are_named_and_their_opposites_denied(color):
    image = scene((LEFT, RGB[color]), ground="#7fd6c0")
    found = {"car": [(0.9, LEFT)]}
    assert outcome(f"Is the car {color}?", image, **found) == "pass"
    other = {"green": "red", "blue": "yellow", "yellow": "blue"}.get(color, "green")
    assert outcome(f"Is the car {other}?", image, **found) == "fail"


@given(st.binary(min_size=3, max_size=300))
def test_every_pixel_has_one_colour(data):
    import numpy as np

    pixels = np.frombuffer(data[: len(data) // 3 * 3], np.uint8).reshape(-1, 3)
    assert sum(shares(pixels).values()) == pytest.approx(1)


def test_a_mixed_or_neighbouring_colour_is_unclear():
    half = (LEFT[0], LEFT[1], LEFT[0] + 0.08, LEFT[3])
    mixed = scene((LEFT, RGB["blue"]), (half, RGB["red"]))
    assert outcome("Is the car red?", mixed, car=[(0.9, LEFT)]) == "unjudged"
    assert outcome("Is the car orange?", scene((LEFT, RGB["red"])), car=[(0.9, LEFT)]) == "unjudged"


def test_things_are_counted_by_their_colour():
    image = scene((LEFT, RGB["red"]), (RIGHT, RGB["green"]))
    found = {"apple": [(0.9, LEFT), (0.9, RIGHT)]}
    assert outcome("Is there exactly one red apple?", image, **found) == "pass"
    assert outcome("Are there two red apples?", image, **found) == "fail"
    assert outcome("Are there two apples?", image, **found) == "pass"
    assert outcome("Are the apples red?", image, **found) == "fail"
    assert outcome("Is the red apple left of the green apple?", image, **found) == "pass"


def test_what_is_not_detected_has_no_colour():
    assert outcome("Is the car red?") == "unjudged"


def test_questions_of_other_kinds_are_not_the_detector_s():
    assert outcome("Is there a dog?", kind="style", dog=[(0.9, LEFT)]) == "unjudged"


def test_a_thing_is_looked_for_once_a_picture():
    detector = Finds(dog=[(0.9, LEFT)])
    checks = [Check("a", "Is there a dog?"), Check("b", "Are there two dogs?"), Check("c", "Is the dog red?")]
    verifier = DetectorVerifier(detector)
    verifier.judge(scene(), checks)
    verifier.judge(scene(), checks)
    assert detector.asked == ["dog"]
    verifier.judge(scene(ground="black"), checks)
    assert detector.asked == ["dog", "dog"]


fractions = st.floats(0, 1)
boxes = st.tuples(fractions, fractions, fractions, fractions).filter(lambda b: b[0] < b[2] and b[1] < b[3])


@given(st.lists(st.tuples(fractions, boxes), max_size=8), st.floats(0.1, 1))
def test_suppression_keeps_the_best_and_nothing_that_overlaps(found, overlap):
    detections = [Detection(score, box) for score, box in found]
    kept = suppress(detections, overlap)
    assert set(kept) <= set(detections)
    for i, one in enumerate(kept):
        assert all(intersection_over_union(one.box, other.box) < overlap for other in kept[:i])
    for dropped in set(detections) - set(kept):
        better = [k for k in kept if k.score >= dropped.score]
        assert any(intersection_over_union(dropped.box, k.box) >= overlap for k in better)


@pytest.mark.parametrize("settings", [(0.1, 0.2, 0.5), (1.2, 0.1, 0.5), (0.5, 0.1, 0.0)])
def test_thresholds_that_cannot_work_are_refused(settings):
    with pytest.raises(SettingError):
        DetectorSettings(*settings)


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    return tiny_detector.make(tmp_path_factory.mktemp("models") / "tiny-owl")


def test_a_real_detector_gives_boxes_within_the_picture(owl):
    detector = TransformersDetector(owl, "cpu")
    found = detector.detect(scene((LEFT, "red")), "car", 0.0)
    assert found
    assert all(0 <= d.box[0] < d.box[2] <= 1 and 0 <= d.box[1] < d.box[3] <= 1 for d in found)
    assert all(0 <= d.score <= 1 for d in found)
    verifier = DetectorVerifier(detector, DetectorSettings(sure=0.0, maybe=0.0))
    result = verifier.judge(scene((LEFT, "red")), [Check("c", "Is there a car?")]).results[0]
    assert result.outcome == "pass"
    assert result.evidence[0].judge == "detector tiny-owl"


def test_a_folder_without_a_detector_is_refused(owl, tmp_path):
    with pytest.raises(MissingFileError, match=r"no config\.json"):
        TransformersDetector(tmp_path)
    (tmp_path / "config.json").write_text((owl / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"code")
    with pytest.raises(WeightsError, match="safetensors"):
        TransformersDetector(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="cannot be opened"):
        TransformersDetector(tmp_path).detect(scene(), "car", 0.1)
