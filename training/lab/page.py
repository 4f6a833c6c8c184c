"""docs/results/ablation.md: the paper's tables at our scale, what agrees and what does not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clvr.hub import read_json
from clvr.report.figures import duration

from ..data.folder import STATISTICS
from . import plots
from .chain import Chain
from .config import GENEVAL
from .found import CLAIMS, Difference, Found, difference, saved, verdict
from .rows import Measured, Row

NAME, NOTES = "ablation", "ablation_notes.md"
"""What a person has to say of the results stands in the second, and is taken into the first."""


def write(chain: Chain, root: Path, out: Path) -> list[Path]:
    """The page and its pictures, of whatever is done by now; what was written."""
    found = Found.read(chain, root)
    out.mkdir(parents=True, exist_ok=True)
    pictures = {
        "rates": plots.rates(found) if found.rows else None,
        "curves": plots.curves(found),
        "seconds": plots.seconds(found),
        "sheet": plots.sheet(found),
    }
    made = []
    for name, image in pictures.items():
        if image is not None:
            made.append(out / f"{NAME}_{name}.png")
            image.save(made[-1], optimize=True)
    parts = (
        _head(chain, found),
        _rates(chain, found),
        _within(chain, found),
        _claims(found),
        _notes(out / NOTES),
        _data(found),
        _shifts(found),
        _clocks(found),
        _cost(found),
    )
    lines = [line for part in parts for line in (*part, "")]
    shown = {path.stem.removeprefix(f"{NAME}_") for path in made}
    kept = [line for line in lines if not line.startswith("![") or any(f"_{name}.png" in line for name in shown)]
    page = out / f"{NAME}.md"
    page.write_text("\n".join(kept).rstrip() + "\n", encoding="utf-8")
    return [page, *made]


def _head(chain: Chain, found: Found) -> Iterator[str]:
    told = chain.config.evaluation
    count = max((len(runs) for runs in found.rows.values()), default=0)
    yield "# The ablation, in the built-in world"
    yield ""
    yield (
        f"Made by `make lab`, {len(found.folders)} of {len(chain.stages)} stages done. Every row draws the same "
        f"{count} prompts of `clvr bench builtin`, which no training saw and the data engine keeps out of its "
        "datasets. The planner is rule-based and the same everywhere, the verifier measures; a loop has at most "
        f"{told.rounds} rounds. A prompt passes where every check holds. 95 % Wilson intervals. Models that are not "
        f"distilled draw in {told.steps} steps at guidance {told.guidance:g}, the others in "
        f"{chain.config.distill.steps} without."
    )
    yield ""
    yield f"![pass rates]({NAME}_rates.png)"
    yield f"![the same prompts by every row]({NAME}_sheet.png)"


def _rates(chain: Chain, found: Found) -> Iterator[str]:
    extra = [c for c in chain.config.evaluation.categories if c not in GENEVAL]
    yield "## Tables 4 and 6"
    yield ""
    columns = (*GENEVAL, *extra)
    yield f"| | overall | mean of categories | {' | '.join(columns)} | images | NFE an image | paper, overall |"
    yield "| --- " * (len(columns) + 6) + "|"
    for row in found.measured():
        yield _line(found, row, columns)
    yield ""
    yield (
        f"Overall and mean: of GenEval's six categories{f', without {extra[0]}' if extra else ''}. "
        "The paper's overall is the mean of its categories. Its rows by category "
        f"({', '.join(GENEVAL)}), FLUX.2 klein 4B on GenEval:"
    )
    yield ""
    yield f"| | {' | '.join(GENEVAL)} |"
    yield "| --- " * (len(GENEVAL) + 1) + "|"
    for row in found.measured():
        if row.paper:
            yield f"| {row.name} | {' | '.join(f'{value:.2f}' for value in row.paper[:-1])} |"


def _line(found: Found, row: Row, columns: Sequence[str]) -> str:
    runs = found.rows[row.key]
    images = sum(run.images for run in runs)
    cells = [str(found.rate(row.key)), _number(found.macro(row.key))]
    cells += [str(found.rate(row.key, (column,))) for column in columns]
    cells += [f"{images / max(len(runs), 1):.2f}", f"{sum(run.nfe for run in runs) / max(images, 1):.0f}"]
    cells.append(f"{row.paper[-1]:.2f}" if row.paper else "–")
    return f"| {row.name} | {' | '.join(cells)} |"


def _claims(found: Found) -> Iterator[str]:
    judged = [(claim, between) for claim in CLAIMS if (between := difference(found, claim)) is not None]
    if not judged:
        return
    yield "## What agrees with the paper"
    yield ""
    yield (
        "Differences on the same prompts, all categories: of pass rates, and of the pictures that a prompt takes, "
        "where both rows draw in the loop. Undecided: the interval holds zero."
    )
    yield ""
    yield "| the paper says | pass rate | | pictures saved | |"
    yield "| --- | --- | --- | --- | --- |"
    for claim, between in judged:
        yield f"| {claim.said} | {_between(between)} | {_between(saved(found, claim))} |"


def _between(told: Difference | None) -> str:
    """Two cells."""
    return "– | " if told is None else f"{told[0]:+.3f} [{told[1]:+.3f}, {told[2]:+.3f}] | {verdict(told)}"


def _within(chain: Chain, found: Found) -> Iterator[str]:
    looped = [row for row in found.measured() if row.looped]
    if not looped:
        return
    counts = [k for k in (1, 2, 3, 4, 6, 8, 12, 16) if k <= chain.config.evaluation.rounds]
    yield "## Passes by pictures drawn"
    yield ""
    yield "Share of all prompts that pass with at most so many pictures; a loop ends where every check holds."
    yield ""
    yield f"| | {' | '.join(map(str, counts))} | pictures a prompt |"
    yield "| --- " * (len(counts) + 2) + "|"
    for row in looped:
        runs = found.rows[row.key]
        shares = " | ".join(f"{found.within(row.key, k).share:.2f}" for k in counts)
        yield f"| {row.name} | {shares} | {statistics.fmean(run.images for run in runs):.2f} |"


def _notes(path: Path) -> Iterator[str]:
    if path.exists():
        yield path.read_text("utf-8").rstrip()


def _data(found: Found) -> Iterator[str]:
    if "data" not in found.folders:
        return
    told = read_json(found.folders["data"] / STATISTICS)
    yield "## Trajectories"
    yield ""
    yield (
        f"{told['kept']} of {told['candidates']} candidates were kept, with "
        f"{sum(int(n) * count for n, count in told['rounds'].items())} pictures; the paper kept 20,861 of 100,000."
    )
    yield ""
    yield "| gate | passed | share |"
    yield "| --- | --- | --- |"
    for gate in told["gates"]:
        share = f"{gate['passed'] / gate['came']:.2f} [{gate['low']:.2f}, {gate['high']:.2f}]" if gate["came"] else "–"
        yield f"| {gate['name']} | {gate['passed']} of {gate['came']} | {share} |"


def _shifts(found: Found) -> Iterator[str]:
    if not found.merges:
        return
    yield "## Increments and merges"
    yield ""
    yield (
        "Relative Frobenius shifts (eq. 7) of each increment and of the merged weights, and cosines between increments "
        "(random directions would give the last column). The paper's 4B: distilled 2.79 %, SFT 2.30 %, RL LoRA "
        "0.0075 %."
    )
    yield ""
    yield "| merge | shifts | merged | left by rounding | cosines | random |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, report in found.merges.items():
        yield _merged(name, report)


def _merged(name: str, report: Any) -> str:  # noqa: ANN401
    whole = report["whole"] or {}
    told = {increment["mark"]: _stage(increment["path"]) for increment in report["increments"]}
    shifts = ", ".join(f"{told[mark]} {_percent(value)}" for mark, value in whole.get("shift", {}).items())
    cosines = ", ".join(
        f"{' · '.join(told[mark] for mark in pair.split('·'))} {_number(value, 4)}"
        for pair, value in whole.get("cosines", {}).items()
    )
    merged, chance = _percent(whole.get("merged")), _number(whole.get("random"), 4)
    left = ", ".join(f"{told[mark]} {_percent(value)}" for mark, value in whole.get("retained", {}).items())
    return f"| {name} | {shifts} | {merged} | {left} | {cosines or '–'} | {chance} |"


def _stage(path: str) -> str:
    """The stage that an increment's file or folder comes from."""
    part = next((p for p in reversed(Path(path).parts) if p.rpartition("-")[0]), path)
    return part.rpartition("-")[0]


def _clocks(found: Found) -> Iterator[str]:
    if not found.clocks:
        return
    yield "## Table 8: seconds of whole trajectories"
    yield ""
    yield "One at a time, as `clvr generate` draws them; planning and judging included."
    yield ""
    lengths = sorted({run.images for runs in found.clocks.values() for run in runs})
    yield f"| pictures | {' | '.join(found.clocks)} |"
    yield "| --- " * (len(found.clocks) + 1) + "|"
    for count in lengths:
        yield f"| {count} | {' | '.join(_mean(runs, count) for runs in found.clocks.values())} |"
    yield f"| all | {' | '.join(_mean(runs) for runs in found.clocks.values())} |"
    yield ""
    yield f"![seconds of whole trajectories]({NAME}_seconds.png)"


def _mean(runs: Sequence[Measured], count: int | None = None) -> str:
    own = [run.seconds for run in runs if count is None or run.images == count]
    return f"{duration(statistics.fmean(own))} (n = {len(own)})" if own else "–"


def _cost(found: Found) -> Iterator[str]:
    yield "## What it took"
    yield ""
    yield "| stage | time |"
    yield "| --- | --- |"
    for name, spent in found.seconds.items():
        yield f"| {name} | {duration(spent)} |"
    yield ""
    yield f"![training curves]({NAME}_curves.png)"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g} %"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"
