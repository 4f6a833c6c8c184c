"""What a person looks at in a run's folder: the final picture, the contact sheet, the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import FormatError
from ..images import save_png
from .metadata import save_final
from .page import write_report
from .pictures import RunInfo
from .sheet import contact_sheet

if TYPE_CHECKING:
    from ..journal import Record


def write_folder(record: Record) -> None:
    """final.png, sheet.png and report.html. Raises FormatError for a run without a drawing, JournalError for a
    damaged picture."""
    folder, trajectory, models = record.folder, record.trajectory, record.header.models
    if trajectory.best is None:
        raise FormatError(f"{folder} holds no complete round yet.", f"Continue it with: clvr resume {folder}")
    pictures = record.pictures()
    if trajectory.best.label not in pictures:
        record.album()  # names the damaged file
    save_final(pictures[trajectory.best.label], folder / "final.png", trajectory=trajectory, models=models)
    save_png(contact_sheet(trajectory, pictures), folder / "sheet.png")
    info = RunInfo(record.header.budget, models, trajectory.cost.total_seconds, record.header.policy)
    write_report(trajectory, pictures, folder / "report.html", settings=info)
