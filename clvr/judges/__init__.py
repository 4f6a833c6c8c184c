"""Judges beside and around a VLM. Each is a `ports.Verifier` or a `ports.Comparer`, so that they nest freely."""

from .by_score import ScoreComparer
from .faulty import FaultyVerifier
from .panel import AGREEMENTS, ComparerPanel, Panel
from .witness import Witnessed

__all__ = ["AGREEMENTS", "ComparerPanel", "FaultyVerifier", "Panel", "ScoreComparer", "Witnessed"]
