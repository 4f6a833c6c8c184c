"""The built-in model: FLUX.2 [klein]'s classes at tiny size, trained on the built-in world. See README.md here."""

from __future__ import annotations

from pathlib import Path

PATH = Path(__file__).parent
"""The folder, as Flux2KleinPipeline.from_pretrained takes it."""
