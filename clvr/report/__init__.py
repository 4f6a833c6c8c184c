"""A run as something to look at: one HTML page, a contact sheet, and the final picture with its metadata."""

from __future__ import annotations

from .folder import write_folder
from .metadata import save_final
from .page import write_report
from .pictures import RunInfo, candidate_label
from .sheet import contact_sheet

__all__ = ["RunInfo", "candidate_label", "contact_sheet", "save_final", "write_folder", "write_report"]
