"""The commands about runs: generate, resume, report, export, models."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FormatError, MissingFileError, SettingError
from .checklist import add_option, read_checklist
from .common import FAILED, OK, policies, say
from .forecast import forecast, recorder
from .opening import add_drawing, add_judges, add_models, choice_of, open_generator

if TYPE_CHECKING:
    from ..events import Answer, Event
    from ..journal import Journal, Record
    from ..loop import Ports, State
    from ..models import Choice
    from ..ports import Controller, Verifier
    from ..terminal import Progress

BUDGET = (
    "fast, balanced or thorough, or limits as name=value, or the one and then the other, separated by commas: "
    "steps (8), candidates (1), nfe, seconds, vlm_calls, tokens, batch, verify_every (1), threshold (1), "
    "patience (4); 'none' lifts a limit"
)


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_generate(commands.add_parser(
        "generate", help="draw a prompt; everything goes into a run folder",
        epilog=policies(), formatter_class=argparse.RawDescriptionHelpFormatter,
    ))  # fmt: skip
    resume = commands.add_parser("resume", help="continue a run that was interrupted, or give it more budget")
    resume.add_argument("folder", type=Path, metavar="DIR")
    resume.add_argument("--budget", default="", metavar="LIMITS", help=f"new limits over the old ones: {BUDGET}")
    resume.add_argument("--vlm", default="", metavar="URL", help="another address of the VLM server")
    resume.set_defaults(command=_resume)
    report = commands.add_parser("report", help="write final.png, sheet.png and report.html of a run anew")
    report.add_argument("folder", type=Path, metavar="DIR")
    report.set_defaults(command=_report)
    export = commands.add_parser("export", help="write runs as training conversations")
    export.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    export.add_argument("--sharegpt", type=Path, required=True, metavar="FILE", help=".json, or .jsonl for lines")
    export.set_defaults(command=_export)
    models = commands.add_parser("models", help="what is usable on this machine, and what is missing")
    models.add_argument("--vlm", default="", metavar="URL", help="also ask this VLM server")
    models.add_argument("--vlm-model", default="", metavar="NAME")
    models.set_defaults(command=_models)


def _add_generate(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("prompt")
    add("--reference", type=Path, action="append", default=[], metavar="IMG", help="a picture to start from")
    add_models(command)
    add_judges(command)
    add_option(command)
    add("--budget", default="", metavar="LIMITS", help=BUDGET)
    add("--estimate", action="store_true", help="tell how long it would take, from past runs, and draw nothing")
    add("--policy", default="clvr", metavar="NAME", help="how the loop is run, see below (clvr)")
    add("--seed", type=int, help="the same seed gives the same run; random when not given")
    add_drawing(command)
    add("--out", type=Path, metavar="DIR", help="run folder; out/<time>-<prompt> when not given")
    command.set_defaults(command=_generate)


def _generate(options: argparse.Namespace) -> int:
    from .. import loop
    from ..budget import Budget
    from ..images import load_image
    from ..journal import Header, Journal
    from ..models import load_judges
    from ..policies import find_policy
    from ..terminal import Progress
    from ..trajectory import Goal

    budget = Budget.parse(options.budget)
    find_policy(options.policy)
    choice = choice_of(options).resolved()
    if options.estimate:
        print(forecast(choice, budget, options.size))
        return OK
    references = [load_image(path) for path in options.reference]
    checks = read_checklist(options.checklist)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    folder = options.out or _default_folder(options.prompt)
    with Journal.create(folder) as journal:
        progress = Progress(budget.steps)
        with contextlib.suppress(MissingFileError):  # a model that is still to be downloaded has no past
            say(forecast(choice, budget, options.size))
        controller, verifier = load_judges(choice)
        settings = loop.Settings(budget, options.policy, options.size)
        state = loop.start(Goal(options.prompt, checks=checks), references, controller, settings, seed, progress.listen)
        generator = open_generator(choice)
        ports = loop.Ports(controller, generator, verifier)
        size = options.size or generator.default_size
        journal.begin(Header.of(state, size, _names(ports), choice.options()), references)
        return _proceed(state, ports, journal, progress)


def _resume(options: argparse.Namespace) -> int:
    from .. import journal, loop
    from ..budget import Budget
    from ..models import load_judges
    from ..terminal import Progress

    record = journal.read(options.folder)
    budget = Budget.parse(options.budget, record.header.budget) if options.budget else None
    choice = _recorded_choice(record, options.vlm)
    album = record.album()
    book, record = journal.Journal.reopen(options.folder, budget)
    with book:
        for warning in record.warnings:
            say(f"clvr: {warning}")
        if record.trajectory.stop_reason:
            say(f"The run is over: {record.trajectory.stop_reason}. More budget continues it.")
            return _present(record)
        header = record.header
        controller, verifier = load_judges(choice)
        if not options.vlm:
            _require_judge(record, controller, verifier)
        ports = loop.Ports(controller, open_generator(choice), verifier)
        settings = loop.Settings(header.budget, header.policy, header.asked_size)
        progress = Progress(header.budget.steps)
        progress.show(record.trajectory)
        return _proceed(loop.State(record.trajectory, album, settings), ports, book, progress)


IN_COMFYUI = (
    "Continue it in ComfyUI: CLVR Load Trajectory, into continue_from of CLVR Closed Loop or CLVR Start with the "
    "same models. clvr report shows what is there."
)


def _recorded_choice(record: Record, vlm: str) -> Choice:
    """Who drew, planned and judged the run so far; `vlm` is another address for the same VLM. Raises
    MissingFileError for a model that exists in a graph of ComfyUI only, FormatError where nothing says which."""
    from ..models import IN_A_GRAPH, Choice

    header, options = record.header, record.header.options
    if not options and not header.models:
        raise FormatError(f"{record.folder} does not say with which models it was made.", IN_COMFYUI)
    drawn_by, planned_by = (header.models.get(role, "not known yet") for role in ("generator", "controller"))
    if options.get("model", IN_A_GRAPH) == IN_A_GRAPH:
        raise MissingFileError(f"What draws in {record.folder} is part of a ComfyUI graph: {drawn_by}.", IN_COMFYUI)
    if not vlm and "vlm" not in options:
        raise MissingFileError(f"What plans in {record.folder} is part of a ComfyUI graph: {planned_by}.", IN_COMFYUI)
    choice = Choice.recorded(options)
    return dataclasses.replace(choice, vlm=vlm, trusted=True) if vlm else choice


def _require_judge(record: Record, controller: Controller, verifier: Verifier) -> None:
    """Raises SettingError where somebody else judged the run so far: its scores would not compare."""
    planned, judged = (record.header.models.get(role, "") for role in ("controller", "verifier"))
    one = controller.name == verifier.name  # the VLM, whatever its server calls it today
    if judged and not (planned == judged if one else judged == verifier.name):
        raise SettingError(f"{judged} judges in {record.folder}, and {verifier.name} would take over.", IN_COMFYUI)


def _proceed(state: State, ports: Ports, journal: Journal, progress: Progress) -> int:
    """Run to the end, with the journal first and the screen second. Leaves a readable folder in any case."""
    from .. import loop
    from ..journal import read

    past = recorder(ports)

    def listen(event: Event) -> Answer | None:
        answer = journal.listen(event)
        progress.listen(event)
        past.listen(event)
        return answer

    try:
        state = loop.proceed(state, ports, listen)
    except BaseException:
        say(f"clvr: what is complete stays; continue with: clvr resume {journal.folder}")
        raise
    finally:
        progress.close()
    code = _present(read(journal.folder))
    return FAILED if state.resumable else code


def _present(record: Record) -> int:
    """Write what a person looks at, and say where it is. Raises FormatError for a run without a drawing."""
    from ..report import write_folder

    write_folder(record)
    for name in ("final.png", "sheet.png", "report.html", "trajectory.json"):
        print(record.folder / name)
    return OK


def _report(options: argparse.Namespace) -> int:
    from ..journal import read

    record = read(options.folder)
    for warning in record.warnings:
        say(f"clvr: {warning}")
    return _present(record)


def _export(options: argparse.Namespace) -> int:
    from ..context import to_sharegpt
    from ..files import write_atomic
    from ..journal import read

    base = options.sharegpt.resolve().parent
    records = []
    for folder in options.folders:
        record = read(folder)
        paths = {label: _relative(folder.resolve() / path, base) for label, path in record.paths().items()}
        records.append(to_sharegpt(record.trajectory, paths))
    if options.sharegpt.suffix == ".jsonl":
        text = "".join(json.dumps(record) + "\n" for record in records)
    else:
        text = json.dumps(records, indent=1)
    write_atomic(options.sharegpt, text.encode())
    print(options.sharegpt)
    return OK


def _models(options: argparse.Namespace) -> int:
    from ..models import survey

    for finding in survey(options.vlm, options.vlm_model):
        print(f"{'ok     ' if finding.usable else 'missing'}  {finding.name}\n         {finding.detail}")
    return OK


def _names(ports: Ports) -> dict[str, str]:
    found = {role.name: getattr(ports, role.name) for role in dataclasses.fields(ports)}
    return {role: port.name for role, port in found.items() if port}


def _default_folder(prompt: str) -> Path:
    slug = "-".join(re.findall(r"[a-z0-9]+", prompt.lower()))[:40].strip("-")
    return Path("out") / "-".join(filter(None, (time.strftime("%Y%m%d-%H%M%S"), slug)))


def _relative(path: Path, base: Path) -> str:
    """With slashes on every system, as training tools expect."""
    return Path(os.path.relpath(path, base)).as_posix()
