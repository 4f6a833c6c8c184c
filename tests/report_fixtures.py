"""Example runs with drawn pictures, for the report's tests."""

from __future__ import annotations

from PIL import Image, ImageDraw

from clvr.budget import Budget
from clvr.ports import Album
from clvr.report import RunInfo, candidate_label
from clvr.trajectory import (
    Brief,
    Candidate,
    Check,
    CheckVerdict,
    Cost,
    Decision,
    Evidence,
    Goal,
    Step,
    Trajectory,
    Usage,
    Verdict,
    generated,
    referenced,
)

PROMPT = "two red circles and a blue square left of a green triangle"
CHECKS = (
    Check("circles", "Is there a red circle?", "object"),
    Check("two", "Are there exactly two red circles?", "count", parent="circles"),
    Check("square", "Is there a blue square?", "object"),
    Check("triangle", "Is there a green triangle?", "object", weight=2.0),
    Check("left", "Is the blue square left of the green triangle?", "position", parent="triangle"),
    Check("plain", "Is the background plain?", "style"),
)
RED_A, RED_B = (0.08, 0.1, 0.33, 0.35), (0.6, 0.08, 0.85, 0.33)
BLUE, GREEN = (0.1, 0.58, 0.38, 0.86), (0.6, 0.55, 0.9, 0.85)
_COLORS = {"red": (214, 48, 49), "blue": (45, 96, 212), "green": (52, 158, 72)}
CIRCLES = [("circle", "red", RED_A), ("circle", "red", RED_B)]
FULL = [*CIRCLES, ("square", "blue", BLUE), ("triangle", "green", GREEN)]


def draw(shapes, size=(64, 64), background=(244, 241, 234)):
    """Shapes as (name, colour, box), anti-aliased by drawing four times larger."""
    wide, high = size[0] * 4, size[1] * 4
    image = Image.new("RGB", (wide, high), background)
    pen = ImageDraw.Draw(image)
    for name, color, (x0, y0, x1, y1) in shapes:
        box = (x0 * wide, y0 * high, x1 * wide, y1 * high)
        if name == "circle":
            pen.ellipse(box, fill=_COLORS[color])
        elif name == "square":
            pen.rectangle(box, fill=_COLORS[color])
        else:
            pen.polygon([((box[0] + box[2]) / 2, box[1]), (box[2], box[3]), (box[0], box[3])], fill=_COLORS[color])
    return image.resize(size, Image.Resampling.LANCZOS)


def judged(found, boxes, unjudged=()):
    """Goal verdict: `found` names the checks that pass, `boxes` holds the evidence of each."""
    notes = {"circles": "saw a red circle", "two": "counted red circles: {}", "square": "saw a blue square"}
    results = []
    for check in CHECKS:
        outcome = "unjudged" if check.id in unjudged else "pass" if check.id in found else "fail"
        where = tuple(boxes.get(check.id, ()))
        note = notes.get(check.id, "measured on the picture").format(len(where))
        if outcome == "fail":
            note = f"measured {len(where)} where another number was wanted" if where else "nothing of the kind found"
        if outcome == "unjudged":
            note = "the edges are too soft to tell"
        sure = {"pass": 0.97, "fail": 0.06, "unjudged": None}[outcome]
        results.append(CheckVerdict(check.id, outcome, sure, (Evidence("measure", note, where),), raw="[1, 0]"))
    return Verdict(tuple(results), Usage(1, 420, 60))


def own(check, outcome, boxes=()):
    return Verdict((CheckVerdict(check.id, outcome, None, (Evidence("measure", "by colour and outline", boxes),)),))


def _cost(plan, drawn, nfe=56):
    seconds = {"plan": plan, "encode": 0.21, "draw": drawn, "decode": 0.12, "verify": 0.34}
    return Cost(nfe, seconds, Usage(3, 1810, 240))


def _step_zero():
    seen = judged({"circles", "plain"}, {"circles": [RED_A], "two": [RED_A], "square": []})
    decision = Decision(
        "generate",
        "The goal names four objects and one relation. I start with what is largest, the two red circles, "
        "and leave the lower half free for the square and the triangle.",
        "two red circles",
        expects=(Check("e0", "Are there exactly two red circles?", "count"),),
        raw='{"action": "generate", "instruction": "two red circles"}',
    )
    return Step(
        0,
        decision,
        (Candidate(11, own(decision.expects[0], "fail", (RED_A,)), seen),),
        0,
        True,
        _cost(0.4, 3.1),
    )


def _step_one():
    boxes = {"circles": CIRCLES and [RED_A, RED_B], "two": [RED_A, RED_B], "square": [BLUE]}
    good = judged({"circles", "two", "square"}, boxes, unjudged={"plain"})
    poor = judged({"circles", "square"}, {**boxes, "two": [RED_A]})
    none = judged({"square"}, {"square": [BLUE]})
    decision = Decision(
        "edit",
        "Only one circle came out. I add the second one at the top right and, in the same step, "
        "the blue square at the bottom left where there is room.",
        "add a red circle on the right and a blue square below",
        (generated(0), referenced(0)),
        expects=(
            Check("e0", "Is there a second red circle on the right?", "object"),
            Check("e1", "Is there a blue square?", "object"),
        ),
    )
    passive = Verdict(
        (
            CheckVerdict("e0", "pass", 0.93, (Evidence("measure", "red, round", (RED_B,)),)),
            CheckVerdict("e1", "pass", 0.99, (Evidence("measure", "blue, four corners", (BLUE,)),)),
        )
    )
    candidates = (Candidate(21, None, poor), Candidate(22, passive, good), Candidate(23, None, none))
    return Step(1, decision, candidates, 1, True, _cost(0.9, 9.4, 168))


def _step_two():
    seen = judged({"triangle"}, {"triangle": [GREEN]})
    decision = Decision(
        "edit",
        "The triangle is missing. I put it at the bottom right, so that the square stands left of it.",
        "add a green triangle right of the blue square",
        (generated(1),),
    )
    notes = ("The circles and the square were lost in this edit; the score fell, so the canvas stays at round 2.",)
    return Step(2, decision, (Candidate(31, None, seen),), 0, False, _cost(0.5, 3.0), notes)


def _step_three():
    boxes = {
        "circles": [RED_A, RED_B],
        "two": [RED_A, RED_B],
        "square": [BLUE],
        "triangle": [GREEN],
        "left": [BLUE, GREEN],
    }
    seen = judged({c.id for c in CHECKS}, boxes)
    decision = Decision(
        "edit",
        "The last edit redrew everything. I go back to round 2 and ask for the triangle alone, keeping the rest.",
        "add a green triangle at the bottom right, keep everything else",
        (generated(1),),
        brief=Brief((CHECKS[-1].id,), "rephrase"),
    )
    return Step(3, decision, (Candidate(41, None, seen), Candidate(42, None, None)), 0, True, _cost(0.6, 6.2, 112))


def example(size=(64, 64)):
    """A run of four rounds: several candidates, an unjudged check, a rollback, a reference picture."""
    trajectory = Trajectory(
        Goal(PROMPT, 1, CHECKS),
        (_step_zero(), _step_one(), _step_two(), _step_three()),
        seed=7,
        stop_reason="every check of the goal passed",
        preparation=Cost(0, {"plan": 0.8}, Usage(1, 310, 190)),
        closing=Cost(0, {"plan": 0.2}, Usage(1, 900, 20)),
    )
    pictures = {
        referenced(0): draw([("square", "blue", (0.2, 0.2, 0.8, 0.8))], size, (255, 255, 255)),
        generated(0): draw(CIRCLES[:1], size),
        generated(1): draw(FULL[:3], size),
        generated(2): draw(FULL[3:], size),
        generated(3): draw(FULL, size),
        candidate_label(1, 0): draw([FULL[0], FULL[2]], size),
        candidate_label(1, 2): draw([FULL[2]], size),
    }
    return trajectory, Album(pictures)


def info():
    return RunInfo(
        Budget(steps=8, candidates=3, nfe=600, vlm_calls=40),
        {"controller": "shapes rules", "generator": "built-in klein, 64 px", "verifier": "measuring"},
        elapsed=27.4,
        policy="director",
    )
