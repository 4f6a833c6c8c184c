"""A goal's checklist: made tidy, and as text that a person can edit. Standard library only."""

from __future__ import annotations

from .text import GUIDE, parse_text, to_text
from .tidying import MOST, Tidied, tidy

__all__ = ["GUIDE", "MOST", "Tidied", "parse_text", "tidy", "to_text"]
