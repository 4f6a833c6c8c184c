"""clvr probe: complexity of prompts, spectral capacity of weights, results by tier (appendix A.7)."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FormatError, GrammarError, MissingFileError, SettingError
from .common import OK, say

if TYPE_CHECKING:
    from ..probe.fit import PowerLaw
    from ..probe.rank import Entropy, LayerRank
    from ..probe.results import Result
    from ..probe.stratify import Reader, Sample
    from ..probe.tiers import Rate

ABOUT = """How much prompts ask for, how well a model holds up as that grows, and how large its spectral capacity is."""
PROMPTS = """Complexity of each prompt, and its tier among all that are given:

  C = alpha N ln(1 + N) + beta E + gamma ln(1 + W) + R

N instances of things, E attributes and relations, W words, R the weighted hard constraints (text to be written, things
that must be absent, a style, others). Prompts of the built-in world are read exactly; any other needs --vlm.
"""
PROMPTS_EXAMPLES = """examples:
  clvr probe prompts "two red circles above a blue square"
  clvr probe prompts prompts.txt --vlm http://127.0.0.1:8000 --json set.jsonl
  clvr probe prompts prompts.txt --tiers 5 --words 6-40 --fill 20 --json set.jsonl

A file has a prompt a line, or JSON lines with a "prompt" each. The weights are unknown in the paper; ours are
alpha=1,beta=1,gamma=1,text=2,absence=1.5,other=1,style=0.5.
"""
WEIGHTS = """Entropy effective rank of every core layer, and I_eff, their median:

  erank = exp(H(p)),  p = σ² / Σσ² (energy, the paper's)  or  σ / Σσ (sigma, Roy & Vetterli's)

Core layers are the attention and feed-forward matrices of the repeated blocks. Layers are read one at a time: memory
is that of the largest one in float64, whatever the size of the file.
"""
WEIGHTS_EXAMPLES = """examples:
  clvr probe weights models/diffusion_models/klein.safetensors
  clvr probe weights FLUX.2-klein-base-4B FLUX.2-klein-4B --entropy sigma --each --json ranks.json
"""
RESULTS = """Pass rate and recall by tier of complexity with 95 % intervals, and AUC, the area under the pass rate:

A file holds JSON lines, one for each judged image:
  {"prompt": "…", "complexity": 12.3, "passed": true, "recall": 0.8}
"parts" (as clvr probe prompts --json writes them) may stand for the complexity; recall may be missing. A prompt's
images are averaged first. Files are compared over the same tiers.
"""
RESULTS_EXAMPLES = """examples:
  clvr probe results one-shot.jsonl clvr.jsonl --tiers 5 --plot probe.png
  clvr probe results a.jsonl b.jsonl c.jsonl --capacity 604.1 --capacity 977.9 --capacity 1586.4
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    probe = commands.add_parser("probe", help="complexity of prompts, results by tier, spectral capacity of weights",
                                description=ABOUT)  # fmt: skip
    parts = probe.add_subparsers(metavar="WHAT", required=True)
    _add_prompts(_part(parts, "prompts", "complexity and tier of prompts", PROMPTS, PROMPTS_EXAMPLES))
    _add_weights(_part(parts, "weights", "effective rank of a checkpoint", WEIGHTS, WEIGHTS_EXAMPLES))
    _add_results(_part(parts, "results", "pass rate, recall and AUC by tier", RESULTS, RESULTS_EXAMPLES))


def _part(
    parts: argparse._SubParsersAction[argparse.ArgumentParser], name: str, said: str, about: str, examples: str
) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    return parts.add_parser(name, help=said, description=about, epilog=examples, formatter_class=raw)


def _add_prompts(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("sources", nargs="+", metavar="FILE|PROMPT")
    add("--vlm", default="", metavar="VLM", help="who takes the prompts apart: the address of an OpenAI-compatible "
        "server, or transformers:FOLDER; the built-in grammar when not given")  # fmt: skip
    add("--vlm-model", default="", metavar="NAME", help="the server's model; its only one when not given")
    _add_scale(command)
    add("--words", type=_span, metavar="LOW-HIGH", help="keep only prompts of so many words")
    add("--fill", type=int, default=0, metavar="N", help="trim harder prompts until each tier has N, where that leads")
    add("--json", type=Path, metavar="FILE", help="write JSON lines too, which clvr probe results understands")
    command.set_defaults(command=_prompts)


def _add_scale(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tiers", type=int, default=10, metavar="N", help="quantiles; 10 when not given")
    command.add_argument("--weights", default="", metavar="NAME=X,…", help="of the score, over ours")


def _add_weights(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="a safetensors file or a diffusers folder")
    add("--entropy", choices=("energy", "sigma"), default="energy", help="which p; energy when not given")
    add("--layers", metavar="REGEX", help="names of the core layers; those in numbered blocks when not given")
    add("--each", action="store_true", help="a line for every layer, not for every kind")
    add("--device", default="auto", help="auto, cpu, cuda, …")
    add("--json", type=Path, metavar="FILE", help="write every layer's ranks as JSON too")
    command.set_defaults(command=_weights)


def _add_results(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("files", type=Path, nargs="+", metavar="FILE")
    _add_scale(command)
    add("--capacity", type=float, action="append", default=[], metavar="I_EFF", help="of each file's model in turn, "
        "as clvr probe weights says it: fits AUC ~ I_eff^k")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the numbers as JSON too")
    add("--plot", type=Path, metavar="FILE.png", help="draw them")
    command.set_defaults(command=_results)


def _span(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})[-–](\d{1,6})", text.strip())
    if not match or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is no interval; write for example 6-40")
    return int(match[1]), int(match[2])


def _prompts(options: argparse.Namespace) -> int:
    from ..probe import Weights
    from ..probe.stratify import ANY_LENGTH, stratify

    prompts = list(dict.fromkeys(prompt for source in options.sources for prompt in _read_prompts(source)))
    reader = _reader(options)
    try:
        samples = stratify(prompts, reader, options.tiers, options.words or ANY_LENGTH, options.fill,
                           Weights.parse(options.weights))  # fmt: skip
    except GrammarError as error:
        raise GrammarError(error.thing, "Prompts beyond the built-in world are read by a VLM: add --vlm.") from None
    print(*_prompt_lines(samples), sep="\n")
    _say_sparse(samples, options, len(prompts))
    if options.json:
        _write(options.json, "".join(json.dumps(s.to_dict(), ensure_ascii=False) + "\n" for s in samples))
    return OK


def _read_prompts(source: str) -> list[str]:
    """The prompts of a file, or the one that the source is. Raises MissingFileError, FormatError."""
    path = Path(source)
    if len(source) > 1000 or not path.is_file():
        if path.suffix in (".txt", ".jsonl", ".json") and " " not in source:
            raise MissingFileError(f"There is no file {source}.", "Check the path.")
        return [source]
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except UnicodeDecodeError:
        raise FormatError(f"{path} is no text.", "Give a file with a prompt a line.") from None
    found = [_prompt_of(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line]
    if not found:
        raise FormatError(f"{path} holds no prompt.", "Give a file with a prompt a line.")
    return found


def _prompt_of(place: str, line: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        return str(json.loads(line)["prompt"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(f"{place} names no prompt.", 'A line is a prompt, or {"prompt": …}.') from None


def _reader(options: argparse.Namespace) -> Reader:
    if options.vlm in ("", "builtin"):
        from ..probe.stratify import GrammarReader

        return GrammarReader()
    from ..models import Choice, load_client
    from ..vlm.complexity import PromptReader

    return PromptReader(load_client(Choice(vlm=options.vlm, vlm_model=options.vlm_model).resolved()))


def _prompt_lines(samples: Sequence[Sample]) -> Iterator[str]:
    yield "tier  complexity   N   E   W  constraints  prompt"
    for sample in samples:
        parts = sample.parts
        kinds = {"text": parts.text, "absence": parts.absence, "style": parts.style, "other": parts.other}
        hard = ",".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        numbers = f"{sample.tier:4}  {sample.complexity:10.2f} {parts.entities:3} {parts.edges:3} {parts.words:3}"
        yield f"{numbers}  {hard or '-':11}  {sample.prompt}{'  (trimmed)' if sample.source else ''}"


def _say_sparse(samples: Sequence[Sample], options: argparse.Namespace, given: int) -> None:
    sizes = Counter(sample.tier for sample in samples)
    trimmed = sum(bool(sample.source) for sample in samples)
    left_out = given - (len(samples) - trimmed)
    if left_out:
        say(f"{left_out} prompts have another number of words and are left out.")
    if options.fill:
        short = [f"{n} ({sizes[n]})" for n in range(1, options.tiers + 1) if sizes[n] < options.fill]
        rest = f"; short of {options.fill} remain the tiers {', '.join(short)}" if short else ""
        say(f"{trimmed} prompts were trimmed to fill tiers{rest}.")


def _weights(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..probe import rank

    report = []
    for path in options.checkpoints:
        layers = rank.core_layers(path, options.layers or rank.CORE)
        device = rank.solver(options.device)
        peak = max(layer.peak_bytes for layer in layers) / 1e6
        say(f"{path}: {len(layers)} core layers; about {peak:,.0f} MB of memory at most")
        ranks = [rank.measure(layer, device) for layer in tqdm(layers, unit="layer", leave=False, disable=None)]
        print(*_rank_lines(path, ranks, options.entropy, options.each), sep="\n")
        report.append({"checkpoint": str(path), **_capacities(ranks), "layers": [_rank_row(one) for one in ranks]})
    if options.json:
        _write(options.json, json.dumps(report, indent=1) + "\n")
    return OK


def _capacities(ranks: Sequence[LayerRank]) -> dict[str, float]:
    from ..probe.rank import capacity

    return {"energy": capacity(ranks, "energy"), "sigma": capacity(ranks, "sigma")}


def _rank_row(one: LayerRank) -> dict[str, object]:
    return {"layer": one.layer.name, "shape": list(one.layer.shape), "energy": one.energy, "sigma": one.sigma}


def _rank_lines(path: Path, ranks: Sequence[LayerRank], entropy: Entropy, each: bool) -> Iterator[str]:
    import statistics

    groups: dict[str, list[LayerRank]] = {}
    for one in ranks:
        groups.setdefault(one.layer.name if each else one.layer.kind, []).append(one)
    wide = max(len("layer"), *map(len, groups))
    yield f"{'layer':{wide}}  {'n':>3}  {'shape':>13}  {'least':>8}  {'median':>8}  {'most':>8}  of full rank"
    for name, group in groups.items():
        found = [one.rank(entropy) for one in group]
        shapes = {one.layer.shape for one in group}
        shape = "x".join(map(str, shapes.pop())) if len(shapes) == 1 else "various"
        share = statistics.median(one.rank(entropy) / min(one.layer.shape) for one in group)
        middle = statistics.median(found)
        numbers = f"{min(found):8.2f}  {middle:8.2f}  {max(found):8.2f}  {share:11.1%}"
        yield f"{name:{wide}}  {len(group):3}  {shape:>13}  {numbers}"
    both = _capacities(ranks)
    other = "sigma" if entropy == "energy" else "energy"
    yield f"{path}: I_eff {both[entropy]:.2f} ({entropy}; {other} {both[other]:.2f}), {len(ranks)} core layers\n"


def _results(options: argparse.Namespace) -> int:
    from ..probe import Weights
    from ..probe.fit import power_law
    from ..probe.results import compare, read

    if options.plot and options.plot.suffix.lower() != ".png":
        raise SettingError(f"--plot {options.plot} does not end in .png.", f"Name it {options.plot.stem}.png.")
    if options.capacity and len(options.capacity) != len(options.files):
        raise SettingError(
            f"{len(options.files)} files have {len(options.capacity)} capacities.", "Give one --capacity for each file."
        )
    weights = Weights.parse(options.weights)
    shots = {name: read(path, weights) for name, path in _named(options.files).items()}
    results = compare(shots, options.tiers)
    law = power_law(options.capacity, [result.area for result in results]) if options.capacity else None
    print(*_result_lines(results, law), sep="\n")
    if options.json:
        _write(options.json, json.dumps(_as_json(results, options.capacity, law), indent=1) + "\n")
    if options.plot:
        _plot(options.plot, results, options.capacity, law)
    return OK


def _named(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their stem, by their whole path where that is not their own. Raises SettingError for a file twice."""
    stems = Counter(path.stem for path in files)
    named = {path.stem if stems[path.stem] == 1 else str(path): path for path in files}
    if len(named) < len(files):
        raise SettingError("A file is given twice.", "Name each once.")
    return named


def _result_lines(results: Sequence[Result], law: PowerLaw | None) -> Iterator[str]:
    for result in results:
        yield f"{result.name}: {len(result.scored)} prompts, {result.images} images"
        yield "tier  prompts   complexity (median)  passed                recall"
        for tier in result.tiers:
            span = f"{tier.low:.1f}-{tier.high:.1f} ({tier.median:.1f})"
            yield f"{tier.tier:4}  {tier.prompts:7}   {span:19}  {_rate(tier.passed):20}  {_rate(tier.recall)}"
        recall = "" if result.recall_area is None else f", recall {result.recall_area:.2f}"
        yield f"AUC: pass {result.area:.2f}{recall}\n"
    if law is not None:
        yield f"AUC = {law.factor:.3g} I_eff^{law.exponent:.3f}, R² {law.r_squared:.3f}"


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "-"
    low, high = rate.interval
    return f"{rate.mean:.3f} [{low:.3f}, {high:.3f}]"


def _as_json(results: Iterable[Result], capacities: Sequence[float], law: PowerLaw | None) -> dict[str, object]:
    import dataclasses

    rows: list[dict[str, object]] = []
    for i, result in enumerate(results):
        row: dict[str, object] = {"name": result.name, "prompts": len(result.scored), "images": result.images}
        row |= {"auc_pass": result.area, "auc_recall": result.recall_area}
        row |= {"i_eff": capacities[i]} if capacities else {}
        rows.append({**row, "tiers": [dataclasses.asdict(tier) for tier in result.tiers]})
    return {"results": rows, **({"fit": dataclasses.asdict(law)} if law else {})}


def _plot(path: Path, results: Sequence[Result], capacities: Sequence[float], law: PowerLaw | None) -> None:
    import io

    from ..files import write_atomic
    from ..probe.plot import picture

    buffer = io.BytesIO()
    picture(results, capacities, law).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())
    print(path)


def _write(path: Path, text: str) -> None:
    from ..files import write_atomic

    write_atomic(path, text.encode())
    print(path)
