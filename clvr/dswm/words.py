"""A merge's report as a person reads it: tables of at most about 100 columns, notes and warnings."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from .report import Figures, Increment, Report, Share

COLUMNS = 100
RETAINED = 0.9
"""Below this retained projection there is a warning."""
ALIKE = 0.5
"""Above this cosine two increments share more than chance or habit explains."""
PAPER = "the paper's own on the 4B model, as a public note has them: distilled 2.79 %, SFT 2.30 %, RL LoRA 0.0075 %"


@dataclass(frozen=True)
class Column:
    """One column of a per-block table: its group, its head, and a cell for each block."""

    group: str
    head: str
    cells: tuple[str, ...]

    @property
    def width(self) -> int:
        return max(len(self.head), *(len(cell) for cell in self.cells), 5)


def text(report: Report) -> str:
    parts = [_title(report)]
    if report.whole is None:
        lora = "an extracted LoRA" if report.form == "lora" else "a merge without a report"
        parts.append(f"Shifts and cosines are not measured for {lora}.")
    else:
        parts += [_increments(report, report.whole), _pairs(report, report.whole), *_tables(report)]
    said = [("note", note) for note in notes(report)] + [("warning", warning) for warning in warnings(report)]
    parts.append("\n".join(_wrapped(f"{kind}: {line}", "  ") for kind, line in said))
    return "\n\n".join(part for part in parts if part)


def percent(share: Share) -> str:
    """Three digits."""
    if share is None:
        return "-"
    number = 100 * share
    if number == 0:
        return "0 %"
    if abs(number) < 0.0001:
        return "<0.0001 %"
    return f"{number:.0f} %" if abs(number) >= 99.95 else f"{number:#.3g} %"


def rough(share: Share) -> str:
    """One decimal: what was measured on a sample."""
    return "-" if share is None else f"{100 * share:.1f} %"


def cosine(number: Share) -> str:
    if number is None:
        return "-"
    return "0.0000" if abs(number) < 0.00005 else f"{number:+.4f}"


def seconds(number: float) -> str:
    if number < 60:
        return f"{number:.1f} s"
    return f"{round(number) // 60} min {round(number) % 60} s"


def warnings(report: Report) -> Iterator[str]:
    """What may be wrong with the merge, each with its remedy."""
    whole = report.whole
    if report.energy is not None and report.energy < RETAINED:
        yield f"the LoRA holds only {rough(report.energy)} of the increment's energy. Raise --rank, or write a model."
    if whole is None:
        return
    for i, increment in enumerate(report.increments):
        yield from _strength(report, whole, increment, i)
        yield from _rounding(report, whole, increment, i)
    for pair, number in zip(report.pairs, whole.cosines, strict=True):
        if number is not None and abs(number) > ALIKE:
            yield _alike(pair, number)
    for source, count in zip(report.sources, whole.nonfinite, strict=True):
        if count:
            where = _worst([(block, figures.nonfinite[report.sources.index(source)])
                            for block, figures in report.blocks.items()])  # fmt: skip
            yield f"{count} NaN or Inf in {source}, most in {where}. Get the file again; a model with NaN draws black."


def notes(report: Report) -> Iterator[str]:
    """What one should know to read the numbers."""
    whole = report.whole
    if whole is None:
        return
    if report.reference == "distilled":
        yield (
            "no base was given: shifts are relative to the distilled model, and its own increment is not known. "
            "Name --base to compare the alignment with it."
        )
    for i, increment in enumerate(report.increments):
        over = [(b, f.added[i]) for b, f in report.blocks.items() if (f.added[i] or 0) > report.warn_shift]
        if over and (whole.added[i] or 0) <= report.warn_shift:
            yield (
                f"{increment.name} shifts {len(over)} of {len(report.blocks)} blocks by more than "
                f"{percent(report.warn_shift)}, most {_worst(over)}, though less as a whole."
            )
        low = [(b, 1 - (f.retained[i] or 0)) for b, f in report.blocks.items() if _lost(f, i)]
        if low and not _lost(whole, i):
            many = f"{len(low)} of {len(report.blocks)} blocks"
            yield f"the rounding took more than a tenth of {increment.name} in {many}, most in {_worst(low)}."


def _strength(report: Report, whole: Figures, increment: Increment, i: int) -> Iterator[str]:
    shift, added = whole.shift[i], whole.added[i]
    if shift == 0:
        yield (
            f"{increment.name} is no different from the {report.reference}: its increment is zero. "
            f"Check that {increment.path} is the right file."
        )
    elif shift and added == 0:
        yield f"{increment.name} has strength 0 everywhere: nothing of it is in the merge. Leave it out, or raise λ."
    elif added and added > report.warn_shift:
        yield (
            f"{increment.name} shifts the weights by {percent(added)}, more than {percent(report.warn_shift)}: that "
            f"leaves the local linear regime, in which increments add up without training ({PAPER}). "
            f"Lower its λ, or check that it was trained from this very {report.reference}."
        )


def _rounding(report: Report, whole: Figures, increment: Increment, i: int) -> Iterator[str]:
    if _lost(whole, i):
        finer = {"bf16": "--dtype fp32, or fp16 at half the size", "fp16": "--dtype fp32"}.get(report.dtype)
        remedy = f"Write it as {finer}." if finer else "Its increment is too small for any number format."
        yield (
            f"only {rough(whole.retained[i])} of {increment.name} is left after rounding to {report.dtype}: most of "
            f"its changes are smaller than the steps of that format. {remedy}"
        )


def _lost(figures: Figures, i: int) -> bool:
    retained = figures.retained[i]
    return retained is not None and retained < RETAINED


def _alike(pair: tuple[str, str], number: float) -> str:
    one, other = pair
    if number < 0:
        return f"{one} and {other} point opposite ways (cosine {cosine(number)}): the merge undoes one with the other."
    line = f"{one} and {other} point the same way (cosine {cosine(number)}), so the merge adds much of it twice. "
    if one == "D":
        return line + (
            "A model that was trained from the distilled one holds the distillation already and needs no merge; "
            "with the distilled model as --base its own part alone is added."
        )
    return line + "Where one was trained on top of the other, leave out the earlier one."


def _worst(blocks: Sequence[tuple[str, Share]]) -> str:
    return max(blocks, key=lambda pair: pair[1] or 0)[0]


def _title(report: Report) -> str:
    made = {"bfl": "one file, BFL keys", "diffusers": "diffusers folder", "lora": "LoRA"}.get(report.form, report.form)
    line = f"{PurePath(report.path).name}: {made}, {report.dtype}, merged in {seconds(report.seconds)}"
    if report.energy is not None:
        line += f"\nThe LoRA holds {percent(report.energy)} of the increment's energy."
    return line


def _increments(report: Report, whole: Figures) -> str:
    varied = _varied(report)
    rows = [["", "increment", "λ", "shift", *(["with λ"] if varied else []), "retained", "unchanged"]]
    for i, increment in enumerate(report.increments):
        shifts = [percent(whole.shift[i]), *([percent(whole.added[i])] if varied else [])]
        rows.append([increment.mark, increment.name, _short(increment.strength, 20), *shifts,
                     rough(whole.retained[i]), rough(whole.unchanged[i])])  # fmt: skip
    rows.append(["", "merged", "", *([""] if varied else []), percent(whole.merged), "", ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = COLUMNS - sum(widths) - 2 * len(widths)
    last = ["file", *(_tail(i.path, left) for i in report.increments), f"{whole.weights:,} weights"]
    lines = []
    for row, end in zip(rows, last, strict=True):
        cells = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join([*cells, end]).rstrip())
    about = (
        f"shift: size of the increment relative to the {report.reference} (eq. 7). retained: how much of it is left "
        f"along its own direction after rounding to {report.dtype}; unchanged: weights it should move that the "
        f"rounding left where they were; both measured on one weight in {report.sample}."
    )
    return "\n".join([*lines, _wrapped(about)])


def _varied(report: Report) -> bool:
    return any(increment.varied for increment in report.increments)


def shown_pairs(report: Report) -> list[tuple[int, tuple[str, str]]]:
    """All pairs of up to three increments, with their index; of more, those with the first."""
    pairs = list(enumerate(report.pairs))
    return pairs if len(pairs) <= 3 else [(i, pair) for i, pair in pairs if pair[0] == report.increments[0].mark]


def _pairs(report: Report, whole: Figures) -> str:
    lines = []
    for i, (one, other) in shown_pairs(report):
        number = whole.cosines[i]
        line = f"cosine {one}·{other}  {cosine(number)}"
        if number is None:
            line += "  (an increment is zero)"
        if whole.conflicts[i] is not None and whole.chance[i] is not None and any(whole.conflicts):
            line += (
                f"   signs differ in {rough(whole.conflicts[i])} of shared weights (by chance {rough(whole.chance[i])})"
            )
        lines.append(line)
    if len(lines) < len(report.pairs):
        lines.append(f"The other {len(report.pairs) - len(lines)} pairs are in the JSON report.")
    if lines and whole.random:
        lines.append(
            f"Orthogonal increments do not disturb each other; random ones would give about ±{whole.random:.1g}."
        )
    return "\n".join(lines)


def _tables(report: Report) -> Iterator[str]:
    """All columns by block, in as many tables as the width needs."""
    names = list(report.blocks)
    first = max(len(name) for name in ("block", *names))
    chunk: list[Column] = []
    for column in _columns(report):
        if chunk and first + sum(c.width + 2 for c in (*chunk, column)) > COLUMNS:
            yield _table(names, first, chunk)
            chunk = []
        chunk.append(column)
    yield _table(names, first, chunk)


def _columns(report: Report) -> Iterator[Column]:
    blocks = report.blocks.values()
    marks = [i.mark for i in report.increments]
    scaled = "shift with λ" if _varied(report) else "shift"
    for i, mark in enumerate(marks):
        yield Column(scaled, mark, tuple(percent(f.added[i]) for f in blocks))
    yield Column(scaled, "merged", tuple(percent(f.merged) for f in blocks))
    for i, pair in shown_pairs(report):
        yield Column("cosine", "·".join(pair), tuple(cosine(f.cosines[i]) for f in blocks))
    for i, mark in enumerate(marks):
        yield Column("retained", mark, tuple(rough(f.retained[i]) for f in blocks))


def _table(names: Sequence[str], first: int, columns: Sequence[Column]) -> str:
    groups = " " * first
    for i, column in enumerate(columns):
        new = i == 0 or columns[i - 1].group != column.group
        groups = groups.ljust(first + sum(c.width + 2 for c in columns[:i])) + (f"  {column.group}" if new else "")
    head = "block".ljust(first) + "".join(f"  {c.head:>{c.width}}" for c in columns)
    rows = [name.ljust(first) + "".join(f"  {c.cells[i]:>{c.width}}" for c in columns) for i, name in enumerate(names)]
    return "\n".join([groups.rstrip(), head, *rows])


def _wrapped(line: str, hanging: str = "") -> str:
    return textwrap.fill(line, COLUMNS, subsequent_indent=hanging, break_on_hyphens=False)


def _short(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _tail(line: str, width: int) -> str:
    return line if len(line) <= width else "…" + line[len(line) - width + 1 :]
