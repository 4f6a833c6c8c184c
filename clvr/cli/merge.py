"""The commands about weights: merge and linearity."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import SettingError
from .common import OK, image_size, say

if TYPE_CHECKING:
    from ..dswm.recipe import Recipe
    from ..dswm.report import Report

MERGE = """Add what a distilled and what aligned models learned to their base, in one pass over the files:

  merged = base + λ_d (distilled - base) + Σ λ_k (align_k - base)

Each model is a safetensors file (BFL or ComfyUI keys) or a diffusers folder; --align takes LoRAs too.
With a LoRA alone the base is not needed: it is added to the distilled model.
"""
MERGE_EXAMPLES = """examples:
  clvr merge --base klein-base.safetensors --distilled klein.safetensors --align my-finetune.safetensors \\
             --out models/diffusion_models/klein-mine.safetensors
  clvr merge --distilled klein.safetensors --align my-lora.safetensors:0.8 --out klein-mine.safetensors
  clvr merge --base BASE --distilled DISTILLED --align sft.safetensors --align rl-lora.safetensors:1,double=0.5 \\
             --dtype fp16 --report merge.json --plot merge.png --out klein-mine.safetensors
  clvr merge --recipe merge.yaml --dtype fp32

strengths:
  PATH:0.8               the whole increment times 0.8
  PATH:0.8,double=0.5    and half of it in the double blocks
  groups: input, modulation, double, single, final; one block: double.3; several: single.0-9

docs/merging.md explains the report and lists a recipe's fields.
"""
LINEARITY = """Measure how far from linear the network's output is between the models of a merge:

  |f(merged) - f(distilled) - f(aligned) + f(base)|

at the same inputs. Near zero, the increments add up without training.
"""
LINEARITY_EXAMPLES = """examples:
  clvr linearity --base BASE --distilled DISTILLED --align sft.safetensors --prompt "two red circles"
  clvr linearity --recipe merge.yaml --inputs inputs.safetensors --device cuda --report linearity.json
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    merge = commands.add_parser(
        "merge",
        help="merge a distilled model and aligned weights into one that draws in few steps",
        description=MERGE,
        epilog=MERGE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    _add_sources(merge)
    _add_output(merge)
    _add_report(merge)
    merge.set_defaults(command=_merge)
    linearity = commands.add_parser(
        "linearity",
        help="measure whether a merge's increments add up in the network's output",
        description=LINEARITY,
        epilog=LINEARITY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    _add_sources(linearity)
    _add_inputs(linearity)
    linearity.set_defaults(command=_linearity)


def _add_sources(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("what is merged").add_argument
    add("--recipe", type=Path, metavar="FILE", help="YAML file with all of this; flags override its fields")
    add("--base", type=Path, metavar="PATH", help="the model that the others were trained from")
    add("--distilled", metavar="PATH[:λ]", help="the distilled model; λ is 1 when not given")
    add("--lambda-distilled", metavar="λ", help="the distilled increment's strength, in place of :λ")
    add("--align", action="append", metavar="PATH[:λ[,GROUP=λ…]]",
        help="a fine-tuned model or a LoRA; may be repeated; replaces all of a recipe's")  # fmt: skip


def _add_output(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("what is written").add_argument
    add("--out", type=Path, metavar="PATH", help="a .safetensors file, or a folder for --format diffusers")
    add("--format", dest="form", choices=("bfl", "diffusers", "lora"),
        help="one file for ComfyUI (bfl, the default), a diffusers folder, or the increment as a LoRA")  # fmt: skip
    add("--dtype", choices=("bf16", "fp16", "fp32"), help="bf16 when not given; the report says what rounding took")
    add("--rank", type=_above_zero, metavar="N", help="of the LoRA; 64 when not given")
    add("--relative-to", choices=("base", "distilled"), help="the model that the LoRA is for; base when not given")
    add("--sha256", action="store_true", help="record the inputs' SHA-256, as hubs print it; takes about as long again")
    add("--overwrite", action="store_true", help="replace what is at --out, --report and --plot")
    add("--allow-fp8", action="store_true", help="read fp8 as base, or without scales")
    add("--allow-nonfinite", action="store_true", help="merge weights with NaN or Inf too")
    add("--threads", type=_above_zero, metavar="N", help="as many as help when not given")


def _add_report(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("report (on stdout by default)").add_argument
    add("--report", type=Path, metavar="FILE.json", help="write it as JSON too")
    add("--plot", type=Path, metavar="FILE.png", help="draw it by block")
    add("--no-report", dest="diagnose", action="store_false", help="measure nothing")
    add("--sign-conflict", dest="conflicts", action="store_true", help="count opposite signs; half as slow again")
    add("--warn-shift", type=_share, metavar="X", help="relative shift above which it warns; 0.03 when not given")


def _add_inputs(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("inputs")
    given = group.add_mutually_exclusive_group(required=True)
    given.add_argument("--inputs", type=Path, metavar="FILE", help="safetensors file with the network's inputs")
    given.add_argument("--prompt", dest="prompts", action="append", metavar="P", help="may be repeated; needs a "
                       "pipeline folder as base or distilled model")  # fmt: skip
    add = group.add_argument
    add("--seed", type=int, default=0, help="of the noise; 0 when not given")
    add("--size", type=image_size, metavar="WxH", default=None, help="pixels; the model's own when not given")
    add("--sigmas", type=_sigmas, metavar="S,…", default=(1.0, 0.75, 0.5, 0.25),
        help="noise levels in (0, 1]; 1,0.75,0.5,0.25 when not given")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, …")
    add("--precision", choices=("float32", "bfloat16", "float16"), default="float32", help="of the computation")
    add("--report", type=Path, metavar="FILE.json", help="write the numbers as JSON too")


def _merge(options: argparse.Namespace) -> int:
    settings = _settings(options)
    report, plot = settings.pop("report", None), settings.pop("plot", None)
    if "out" not in settings:
        raise SettingError("Nothing says where the merge is to be written.", "Add --out PATH, or out: to the recipe.")
    recipe = _recipe(settings)
    _check_files(recipe, report, plot)
    from ..dswm.merge import merge
    from ..dswm.report import Report
    from .progress import MergeBar

    try:
        with MergeBar() as bar:
            outcome = merge(recipe, bar.listen)
    except KeyboardInterrupt:
        say(f"clvr: stopped; {recipe.out} is as it was before, and nothing else is left.")
        raise
    made = [outcome.path]
    if recipe.diagnose:
        found = Report.of(outcome)
        print(found.text(), end="\n\n")
        made += _write_report(found, report, plot)
    print(*made, sep="\n")
    return OK


def _linearity(options: argparse.Namespace) -> int:
    names = ("prompts", "inputs", "seed", "size", "sigmas", "device")
    asked = {name: value for name, value in vars(options).items() if name in names}
    kept = {name: value for name, value in vars(options).items() if name not in (*names, "precision")}
    settings = _settings(argparse.Namespace(**kept))
    report = kept.get("report")
    for name in ("report", "plot"):
        settings.pop(name, None)
    recipe = _recipe({"out": Path(), **settings})
    _check_files(dataclasses.replace(recipe, overwrite=True), report, None)
    from ..dswm.linearity import linearity
    from ..flux2.loading import silence

    silence()
    found = linearity(recipe, **asked, dtype=options.precision)
    print(found.text())
    if report:
        _write_json(report, found.json())
        print(report)
    return OK


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe's fields, with those that flags name over them. Raises SettingError."""
    from ..dswm import yaml
    from ..dswm.recipe import Source, Strength

    flags = {name: value for name, value in vars(options).items() if name not in ("recipe", "command")}
    strength = flags.pop("lambda_distilled", None)
    if "distilled" in flags:
        flags["distilled"] = Source.parse(flags["distilled"])
        if strength is not None and flags["distilled"].strength != Strength():
            _refuse(
                "The distilled model's strength is given twice.", "Keep --lambda-distilled or the :λ after its path."
            )
    if "align" in flags:
        flags["align"] = tuple(Source.parse(text) for text in flags["align"])
    written = yaml.read(options.recipe) if "recipe" in options else {}
    settings = _joined(written, flags)
    if strength is not None:
        if "distilled" not in settings:
            _refuse("--lambda-distilled has no distilled model.", "Add --distilled PATH.")
        settings["distilled"] = Source(settings["distilled"].path, Strength.parse(strength))
    return settings


def _joined(written: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """A flag takes with it what in the recipe makes sense only without it."""
    if flags.get("diagnose") is False:
        for name in ("report", "plot", "conflicts", "warn_shift"):
            if name in flags:
                flag = {"conflicts": "sign-conflict", "warn_shift": "warn-shift"}.get(name, name)
                _refuse(f"--no-report and --{flag} contradict each other.", "Leave one out.")
            written.pop(name, None)
    elif {"report", "plot", "conflicts"} & flags.keys():
        written.pop("diagnose", None)
    if flags.get("form", "lora") != "lora":
        written = {name: value for name, value in written.items() if name not in ("rank", "relative_to")}
    return {**written, **flags}


def _recipe(settings: dict[str, Any]) -> Recipe:
    from ..dswm.recipe import Recipe

    recipe = Recipe(**settings)
    if not (recipe.distilled or recipe.align):
        _refuse("There is nothing to merge.", "Name a --distilled model, an --align model or LoRA, or both.")
    if not (recipe.base or recipe.distilled):
        _refuse("There is no model to add to.", "Name --base, --distilled, or both.")
    for name in ("rank", "relative_to"):
        if name in settings and recipe.form != "lora":
            _refuse(f"--{name.replace('_', '-')} is for a LoRA, and --format is {recipe.form}.", "Add --format lora.")
    if not recipe.diagnose and recipe.conflicts:
        _refuse("Sign conflicts are to be counted, and no report is to be made.", "Leave one out.")
    return recipe


def _check_files(recipe: Recipe, report: Path | None, plot: Path | None) -> None:
    """Before the merge, not after it."""
    for name, path, ending in (("report", report, ".json"), ("plot", plot, ".png")):
        if path is None:
            continue
        if not recipe.diagnose:
            _refuse(f"A {name} is asked for, and nothing is to be measured.", f"Leave out --no-report or --{name}.")
        if path.suffix.lower() != ending:
            _refuse(f"--{name} {path} does not end in {ending}.", f"Name it {path.with_suffix(ending).name}.")
        if path.is_dir() or (path.exists() and not recipe.overwrite):
            _refuse(f"{path} is there already.", "Name another file, or add --overwrite.")


def _write_report(report: Report, file: Path | None, plot: Path | None) -> list[Path]:
    """Which files were written."""
    if file:
        _write_json(file, report.json())
    if plot:
        import io

        from ..dswm.plot import draw
        from ..files import write_atomic

        buffer = io.BytesIO()
        draw(report).save(buffer, "PNG")
        write_atomic(plot, buffer.getvalue())
    return [path for path in (file, plot) if path]


def _write_json(path: Path, content: dict[str, object]) -> None:
    from ..files import write_atomic

    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _refuse(thing: str, remedy: str) -> NoReturn:
    raise SettingError(thing, remedy)


def _above_zero(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < 100:
        raise argparse.ArgumentTypeError(f"'{text}' is no share; write 0.03 for 3 %")
    return number


def _sigmas(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number <= 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of noise levels; write for example 1,0.5")
    return numbers
