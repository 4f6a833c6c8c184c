"""clvr calibrate: from labelled pictures to the threshold from which a VLM's yes counts."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SettingError
from .common import OK, say

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..judges.calibration import Calibration, Sample
    from ..ports import Verifier
    from ..trajectory import Check

    Shot = tuple[str, Image, Sequence[Check], Mapping[str, bool]]

ABOUT = """Asks a VLM questions whose answers are known, and finds the probability from which its yes should count: the
one with the highest balanced accuracy, (share of yes judged yes + share of no judged no) / 2. The intervals are 95 %,
from resampling pictures. Writes FILE.json, for clvr generate --judge-threshold, and FILE.png, the plot."""
EXAMPLES = """examples:
  clvr calibrate --builtin 100 --vlm transformers:Qwen/Qwen3-VL-4B-Instruct --out qwen.json
  clvr calibrate my_pictures/ --vlm http://127.0.0.1:8000 --band

A labelled set is a file of JSON lines, or a folder that holds labels.jsonl, with paths relative to the file:
  {"image": "cat.png", "question": "Is there a cat?", "answer": "yes"}
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "calibrate",
        help="find the threshold of a judge from labelled pictures",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("labelled", type=Path, nargs="?", metavar="SET", help="labelled pictures")
    add("--builtin", type=int, metavar="N", help="N noisy pictures of the built-in world with exact answers instead")
    add("--vlm", required=True, metavar="VLM", help="who is calibrated: a server's address, or transformers:FOLDER")
    add("--vlm-model", default="", metavar="NAME", help="the server's model; its only one when not given")
    add("--device", default="auto", help="auto, cpu, cuda, …")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    add("--band", action="store_true", help="leave unjudged what lies in the threshold's 95 %% interval")
    add("--seed", type=int, default=0, help="of the built-in pictures and of resampling (0)")
    add("--out", type=Path, default=Path("calibration.json"), metavar="FILE", help="calibration.json when not given")
    command.set_defaults(command=_calibrate)


def _calibrate(options: argparse.Namespace) -> int:
    from ..images import save_png
    from ..judges import calibration, plot
    from ..models import Choice, load_judges

    if (options.labelled is None) == (options.builtin is None):
        raise SettingError("Labelled pictures are needed.", "Name a SET, or give --builtin 100.")
    if options.builtin is not None and options.builtin < 1:
        raise SettingError(f"{options.builtin} pictures are too few.", "Give --builtin 100.")
    if options.out.suffix == ".png":
        raise SettingError(f"{options.out} would be the plot's name.", "Give --out a name that ends in .json.")
    choice = Choice(vlm=options.vlm, vlm_model=options.vlm_model, device=options.device, dtype=options.dtype)
    _, verifier = load_judges(choice.resolved())
    samples = _asked(verifier, _shots(options))
    found = calibration.calibrate(samples, options.seed)
    print("\n".join(table(found)))
    _write(options.out, found, verifier.name, options.band)
    save_png(plot.draw(found, verifier.name), options.out.with_suffix(".png"))
    print(f"\n{options.out}\n{options.out.with_suffix('.png')}")
    return OK


def _shots(options: argparse.Namespace) -> Iterator[Shot]:
    from ..images import load_image
    from ..judges import labelled
    from ..shapes.labelled import labelled as rendered

    if options.builtin is not None:
        for index, (image, checks, answers) in enumerate(rendered(options.builtin, options.seed)):
            yield f"picture {index + 1}", image, checks, answers
        return
    for photo in labelled.read(options.labelled):
        yield str(photo.path), load_image(photo.path), photo.checks, photo.answers


def _asked(verifier: Verifier, shots: Iterator[Shot]) -> list[Sample]:
    """Every answer of the judge; one that is unjudged has no probability."""
    from ..judges.calibration import Sample

    samples: list[Sample] = []
    for number, (name, image, checks, answers) in enumerate(shots, 1):
        verdict = verifier.judge(image, checks)
        judged = {r.check: r.probability for r in verdict.results if r.outcome in ("pass", "fail")}
        samples += [Sample(judged.get(check.id), answers[check.id], name) for check in checks]
        said = sum(check.id in judged for check in checks)
        say(f"{number}: {name}, {said} of {len(checks)} questions judged")
    return samples


def table(found: Calibration) -> list[str]:
    """What is printed: reliability by bin, then the figures."""
    rows = ["P(yes)      answers  mean  truly yes  95 % interval"]
    for one in found.bins:
        low, high = one.interval
        rows.append(
            f"{one.low:.1f} – {one.high:.1f}   {one.count:7d}  {one.mean:.2f}  {one.share:9.0%}  {low:.0%} – {high:.0%}"
        )
    (low, high), (worst, most) = found.threshold_interval, found.accuracy_interval
    asked = found.yes + found.no + found.unjudged
    return [
        *rows,
        "",
        f"threshold            {found.threshold:.3f}  ({low:.3f} – {high:.3f})",
        f"balanced accuracy    {found.accuracy:.1%}  ({worst:.1%} – {most:.1%}); {found.at_half:.1%} at 0.5",
        f"calibration error    {found.ece:.3f}  (ECE, 10 bins); Brier score {found.brier:.3f}",
        f"answers              {asked}: {found.yes} truly yes, {found.no} truly no, {found.unjudged} without a "
        "probability",
    ]


def _write(path: Path, found: Calibration, judge: str, band: bool) -> None:
    from ..files import write_atomic
    from ..judges.calibrated import VERSION

    low, high = found.threshold_interval if band else (found.threshold, found.threshold)
    data = {"version": VERSION, "judge": judge, "low": low, "high": high, **dataclasses.asdict(found)}
    write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())
