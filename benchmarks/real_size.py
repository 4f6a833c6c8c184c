"""What the closed loop costs at the true sizes of FLUX.2 [klein] and Qwen3-VL, without their weights.

    python -m benchmarks.real_size --model 4B --vlm 8B --json FILE           on an accelerator
    python -m benchmarks.real_size --model 9B --vlm 8B --offload model       one model on the device at a time
    python -m benchmarks.real_size                                           on a CPU: tiny models of the same classes

Random weights in the models' own shapes take the time and the memory of trained ones. They are put into the classes
that the pack draws and asks with; what the VLM says is written beforehand. Medians over --repeat; on a CPU seconds of
the process, which other work on the machine does not lengthen. Memory is the device's peak in a row, weights
included. A row that runs out of memory says so, and the rest goes on."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from benchmarks.real_models import (
    KLEINS,
    VLMS,
    KleinSize,
    Place,
    Scripted,
    VLMSize,
    parameters,
    parts,
    pipelines,
    sampling,
    tokenizer,
)
from benchmarks.real_rounds import PROMPT, NoiseGenerator, Round, Script, decision, noise, simulate, texts
from clvr.context import Context, Turn, narrate
from clvr.devices import choose_device, choose_dtype
from clvr.errors import DeviceMemoryError
from clvr.flux2.encodings import synchronise
from clvr.flux2.generator import Flux2Generator
from clvr.ports import Size
from clvr.trajectory import generated
from clvr.vlm.local import LocalClient, LocalSettings, Resident

T = TypeVar("T")
Row = dict[str, str | int | float | None]
FACTS = {"4B": 3.876, "9B": 9.079}
"""Parameters of the DiTs in 1e9, as counted in the true files."""
KINDS = {"base": "base, 28 steps, CFG 4", "merged": "merged, 4 steps"}
GOAL = 1.10
LOUD = """\
***********************************************************************************************
*  TINY MODELS: {why:<77} *
*  The classes are the true ones, the sizes are not: no figure below tells what klein costs.  *
***********************************************************************************************"""


@dataclass
class Bench:
    """What is measured, built when it is first used."""

    options: argparse.Namespace
    place: Place
    tiny: bool

    @property
    def klein(self) -> KleinSize:
        return KLEINS["tiny" if self.tiny else self.options.model]

    @property
    def seeing(self) -> VLMSize:
        return VLMS["tiny" if self.tiny else self.options.vlm]

    @property
    def size(self) -> Size:
        side = self.options.resolution or self.klein.resolution
        return side, side

    @cached_property
    def words(self):  # noqa: ANN201
        return tokenizer(texts(self.options.rounds))

    @cached_property
    def generators(self) -> dict[str, Flux2Generator]:
        made = pipelines(self.klein, self.words, self.place)
        kinds = zip(KINDS, made, (False, True), strict=True)
        return {
            kind: Flux2Generator(pipeline, sampling(self.klein, self.size[0], distilled), kind, previews=False)
            for kind, pipeline, distilled in kinds
        }

    @cached_property
    def qwen(self) -> Scripted:
        return Scripted(self.seeing, self.words, self.place)

    def client(self, keep_prefix: bool) -> LocalClient:
        leaves = self.place.rest != self.place.device
        settings = LocalSettings(keep_prefix=keep_prefix)
        return LocalClient(self.qwen, Resident(self.qwen.model, self.place.device, leaves), settings)


@dataclass(frozen=True)
class Tried(Generic[T]):
    """Results of the repeats, the device's peak in bytes (None on a CPU), and why there are none."""

    results: list[T]
    peak: int | None
    note: str = ""

    @property
    def ends(self) -> Row:
        """What every row ends with."""
        told: Row = {} if self.peak is None else {"peak GB": self.peak / 1e9}
        return told | ({"note": self.note} if self.note else {})


def attempt(bench: Bench, work: Callable[[], T], warm: Callable[[], object] | None = None) -> Tried[T]:
    """The work as often as was asked, after a warm-up that is not counted (once the work itself by default).
    What is measured a single time is not warmed up."""
    cuda = bench.place.device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    results, note = [], ""
    try:
        if bench.options.repeat > 1:
            (warm or work)()
        if cuda:
            torch.cuda.reset_peak_memory_stats(bench.place.device)
        results = [work() for _ in range(bench.options.repeat)]
    except (torch.OutOfMemoryError, DeviceMemoryError) as error:
        note = f"out of memory: {str(error).splitlines()[0]:.80}"
    return Tried(results, torch.cuda.max_memory_allocated(bench.place.device) if cuda else None, note)


def medians(found: Sequence[Mapping[str, float]]) -> Row:
    return {name: statistics.median(one[name] for one in found) for name in found[0]} if found else {}


# The parts


def sizes(bench: Bench) -> list[Row]:
    """Parameters and bytes of the true sizes, from their shapes alone."""
    rows: list[Row] = []
    for model, seeing in (("4B", "4B"), ("4B", "8B"), ("9B", "8B")):
        made = parts(KLEINS[model], VLMS[seeing], torch.bfloat16)
        counts = {name: parameters(module) for name, module in made.items()}
        if round(counts["DiT"] / 1e9, 3) != FACTS[model]:
            raise RuntimeError(f"the DiT of {model} has {counts['DiT']} parameters, not {FACTS[model]} billion")
        gigabytes: Row = {f"{name} GB": 2 * count / 1e9 for name, count in counts.items()}
        drawing = sum(counts.values()) - counts["VLM"]
        rows.append(
            {
                "klein": model,
                "VLM": seeing,
                "DiT parameters": counts["DiT"],
                **gigabytes,
                "all resident GB": 2 * sum(counts.values()) / 1e9,
                "VLM away while drawing GB": 2 * max(drawing, counts["VLM"]) / 1e9,
                "one part at a time GB": 2 * max(counts.values()) / 1e9,
                "prefix kB a token": prefix_bytes(VLMS[seeing]) / 1e3,
            }
        )
    return rows


def prefix_bytes(size: VLMSize) -> int:
    """Keys and values of one token in bf16."""
    text = size.text
    return 2 * 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"]


def context(bench: Bench, references: int) -> Context:
    """As before the round that draws from so many images, all of them told before."""
    turns = [Turn(i, narrate(decision(i, 1)), generated(i)) for i in range(references)]
    newest = Turn(references, narrate(decision(references, references)))
    images = tuple((generated(i), noise(bench.size, i)) for i in range(references))
    return Context(PROMPT, (*turns, newest), images)


def drawn(bench: Bench, kind: str, references: int, images: int) -> Row:
    """One drawing call, nothing of it encoded before."""
    told: Row = {"model": KINDS[kind], "references": references, "images": images}
    given = context(bench, references)

    def work(generator: Flux2Generator) -> dict[str, float]:
        generator.release()
        drawing, seconds = timed(bench, lambda: generator.draw(given, bench.size, range(images)))
        whole = {"s": seconds, "s an image": seconds / images}
        if bench.place.device.type == "cpu":  # the generator tells wall time
            return whole
        phases = {f"{phase} s": spent for phase, spent in drawing.seconds.items()}
        return whole | phases | {"s a step": phases["draw s"] / generator.sampling.steps}

    def warm() -> None:
        generator = bench.generators[kind]
        once = replace(generator.sampling, steps=1)
        work(Flux2Generator(generator.pipeline, once, kind, previews=False))

    tried = attempt(bench, lambda: work(bench.generators[kind]), warm)
    row = told | medians(tried.results) | tried.ends
    if tried.results and bench.generators[kind].batch is not None:
        row["note"] = f"the memory holds {bench.generators[kind].batch} at once"
        bench.generators[kind].batch = None
    return row


def steps(bench: Bench) -> list[Row]:
    counts = range(bench.options.references + 1)
    return [drawn(bench, kind, count, 1) for kind in KINDS for count in counts]


def candidates(bench: Bench) -> list[Row]:
    """Batches of an edit."""
    references = min(1, bench.options.references)
    return [drawn(bench, kind, references, n) for kind in KINDS for n in range(1, bench.options.candidates + 1)]


def vae(bench: Bench) -> list[Row]:
    """Encoding and decoding alone, as many images at once as a batch has."""

    def work(images: int) -> dict[str, float]:
        module = bench.generators["base"].pipeline.vae.to(bench.place.device)
        width, height = bench.size
        pixels = torch.randn(images, 3, height, width, device=bench.place.device, dtype=bench.place.dtype)
        with torch.inference_mode():
            latents, encoding = timed(bench, lambda: module.encode(pixels).latent_dist.mode())  # pyright: ignore
            _, decoding = timed(bench, lambda: module.decode(latents, return_dict=False))
        module.to(bench.place.rest)
        return {"encode s": encoding, "decode s": decoding}

    rows: list[Row] = []
    for n in range(1, bench.options.candidates + 1):
        tried = attempt(bench, partial(work, n))
        rows.append({"images": n} | medians(tried.results) | tried.ends)
    return rows


def timed(bench: Bench, work: Callable[[], T]) -> tuple[T, float]:
    synchronise(bench.place.device)
    began = bench.place.clock()
    value = work()
    synchronise(bench.place.device)
    return value, bench.place.clock() - began


def vlm(bench: Bench) -> list[Row]:
    """The VLM's rounds, and what the kept prefix saves."""
    rows: list[Row] = []
    for told, keep in (("kept", True), ("read anew", False)):

        def work(rounds: int = bench.options.rounds, keep: bool = keep) -> list[Round]:
            script, client = Script(bench.qwen, 1), bench.client(keep)
            return simulate(script, client, NoiseGenerator(bench.size), bench.size, rounds)[1]

        tried = attempt(bench, work, partial(work, 1))
        for number, same in enumerate(zip(*tried.results, strict=True) if tried.results else [()], 1):
            rows.append({"prefix": told, "round": number} | medians([asked(r) for r in same]) | tried.ends)
    return rows


def asked(one: Round) -> dict[str, float]:
    """The figures of the VLM in a round. Images are seen once, by whoever comes first."""
    plan, judge = one.planning, one.verifying
    return {
        "plan tokens": plan["prompt"],
        "of them read": plan["prefilled"],
        "plan see s": plan["see"],
        "plan read s": plan["read"],
        "plan write s": plan["write"],
        "written": plan["written"],
        "judge tokens": judge["prompt"],
        "of these read": judge["prefilled"],
        "judge see s": judge["see"],
        "judge read s": judge["read"],
        "judge write s": judge["write"],
        "written too": judge["written"],
        "ms a token written": 1e3 * (plan["write"] + judge["write"]) / (plan["written"] + judge["written"]),
    }


def swap(bench: Bench) -> list[Row]:
    """Moving weights between CPU memory and the device, as a `Resident` does around every call."""
    if bench.place.device.type == "cpu":
        return [{"part": part, "note": "not measured: no accelerator to swap with"} for part in ("VLM", "DiT")]
    rows: list[Row] = []
    for part in ("VLM", "DiT", "text encoder", "VAE"):

        def work(part: str = part) -> dict[str, float]:
            pipeline = bench.generators["base"].pipeline
            modules: dict[str, Any] = {
                "DiT": pipeline.transformer,
                "text encoder": pipeline.text_encoder,
                "VAE": pipeline.vae,
            }
            module: Any = bench.qwen.model if part == "VLM" else modules[part]
            _, away = timed(bench, lambda: module.to("cpu"))
            _, back = timed(bench, lambda: module.to(bench.place.device))
            module.to(bench.place.rest)
            return {"GB": sum(p.nbytes for p in module.parameters()) / 1e9, "away s": away, "back s": back}

        tried = attempt(bench, work)
        rows.append({"part": part} | medians(tried.results) | tried.ends)
    return rows


def runs(bench: Bench) -> list[Row]:
    """Whole runs: plan, draw, verify, round after round (table 8 of the paper). Edits draw from the canvas, then
    from all the images before."""
    growing = sorted({1, bench.options.references} - {0})
    rows: list[Row] = []
    for kind in KINDS:
        for references in growing:
            rows += run(bench, kind, references)
    return rows


def run(bench: Bench, kind: str, references: int) -> list[Row]:
    def work(rounds: int) -> tuple[float, list[Round]]:
        return simulate(Script(bench.qwen, references), bench.client(True), bench.generators[kind], bench.size, rounds)

    tried = attempt(bench, partial(work, bench.options.rounds), partial(work, 1))
    told: Row = {"model": KINDS[kind], "references up to": references}
    if not tried.results:
        return [told | tried.ends]
    prepared = statistics.median(seconds for seconds, _ in tried.results)
    rows: list[Row] = []
    sofar = prepared
    for number, same in enumerate(zip(*(rounds for _, rounds in tried.results), strict=True), 1):
        phases = medians([{f"{k} s": v for k, v in one.phases.items()} for one in same])
        whole = statistics.median(one.seconds for one in same)
        sofar += whole
        rows.append(told | {"round": number} | phases | {"round s": whole, "run s": sofar} | tried.ends)
    return rows


def marginal(rows: Sequence[Row]) -> list[Row]:
    """What the last round costs over the first, and over the second, which like it is an edit. In the paper's way
    the first round has the checklist in it."""
    found: list[Row] = []
    for key in dict.fromkeys((row["model"], row["references up to"]) for row in rows if "round s" in row):
        same = [row for row in rows if (row["model"], row["references up to"]) == key]
        first, last = same[0], same[-1]
        if first is last:
            continue
        paper = figure(last, "round s") / figure(first, "run s")
        over_first = figure(last, "round s") / figure(first, "round s")
        more = {
            phase: (figure(last, phase) - figure(first, phase)) / figure(first, "round s")
            for phase in ("plan s", "draw s", "verify s")
        }
        found.append(
            {"model": key[0], "references up to": key[1], "rounds": len(same), "as in table 8": paper}
            | {"over round 1": over_first, "over round 2": figure(last, "round s") / figure(same[1], "round s")}
            | {f"{phase[:-2]} adds": share for phase, share in more.items()}
            | {"aim": GOAL, "met": "yes" if paper <= GOAL else "no"}
        )
    return found


def figure(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, (int, float))
    return value


PARTS: dict[str, tuple[str, Callable[[Bench], list[Row]]]] = {
    "sizes": ("True sizes in bf16, computed from the shapes (weights alone)", sizes),
    "steps": ("A drawing by number of reference images", steps),
    "candidates": ("Candidates drawn at once, each an edit of one image", candidates),
    "vae": ("VAE alone", vae),
    "vlm": ("The VLM by round, with and without the kept prefix", vlm),
    "swap": ("Moving a model between CPU memory and the device", swap),
    "rounds": ("Whole runs by round", runs),
}


# Telling


def table(title: str, rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"## {title}", f"| {' | '.join(columns)} |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += [f"| {' | '.join(cell(row.get(name)) for name in columns)} |" for row in rows]
    return "\n".join([*lines, ""])


def cell(value: str | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def machine(place: Place) -> str:
    if place.device.type == "cuda":
        return torch.cuda.get_device_name(place.device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("4B", "9B"), default="4B", help="FLUX.2 [klein]")
    parser.add_argument("--vlm", choices=("4B", "8B"), default="8B", help="Qwen3-VL")
    parser.add_argument("--size", choices=("auto", "true", "tiny"), default="auto", help="auto: tiny on a CPU")
    parser.add_argument("--resolution", type=int, help="pixels a side; 1024, of the tiny models 256")
    parser.add_argument("--references", type=int, default=4, help="at most so many reference images")
    parser.add_argument("--candidates", type=int, default=4, help="at most so many images at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16, on a CPU float32")
    parser.add_argument(
        "--offload", choices=("none", "model"), default="none", help="model: one on the device at a time"
    )
    parser.add_argument(
        "--part", choices=PARTS, action="append", help="again for each that is wanted; all when not given"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(arguments)
    if min(options.repeat, options.rounds, options.candidates) < 1 or options.references < 0:
        parser.error("at least one round, one candidate and one repeat")
    return options


def prepare(options: argparse.Namespace) -> Bench:
    """Raises SettingError."""
    device = choose_device(options.device)
    tiny = options.size == "tiny" or (options.size == "auto" and device.type == "cpu")
    rest = torch.device("cpu") if options.offload == "model" else device
    return Bench(options, Place(device, rest, choose_dtype(options.dtype, device)), tiny)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    bench = prepare(options)
    about: Row = {
        "device": machine(bench.place),
        "torch": torch.__version__,
        "size": "tiny" if bench.tiny else "true",
        "klein": "tiny" if bench.tiny else options.model,
        "VLM": "tiny" if bench.tiny else options.vlm,
        "resolution": bench.size[0],
        "dtype": str(bench.place.dtype).removeprefix("torch."),
        "offload": options.offload,
        "repeat": options.repeat,
    }
    if bench.tiny:
        why = "this device is a CPU." if bench.place.device.type == "cpu" else "they were asked for."
        print(LOUD.format(why=why))
    print(", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    found: dict[str, list[Row]] = {}
    for part in options.part or PARTS:
        title, measure = PARTS[part]
        found[part] = measure(bench)
        print(table(title, found[part]), flush=True)
    if "rounds" in found:
        found["marginal"] = marginal(found["rounds"])
        print(table("The last round against the first (shares of round 1)", found["marginal"]))
    if options.json:
        options.json.write_text(json.dumps({"about": about, "parts": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
