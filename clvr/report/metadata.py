"""The final picture as PNG with its metadata: ComfyUI's graph, a summary, and that a model made it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from ..files import write_atomic
from ..images import to_rgb
from ..trajectory import Trajectory

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_XMP_KEY = "XML:com.adobe.xmp"
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <xmp:CreatorTool>CLVR</xmp:CreatorTool>
   <Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def save_final(
    image: Image,
    path: str | Path,
    *,
    prompt_metadata: Mapping[str, str] | None = None,
    trajectory: Trajectory | None = None,
    models: Mapping[str, str] | None = None,
) -> None:
    """Write an 8-bit RGB PNG, atomically. Raises RunFolderError.

    prompt_metadata: ComfyUI's text chunks (`prompt`, `workflow`, each JSON text), kept as they are.
    models: names by role, for the `clvr` chunk, which holds `summary` as JSON."""
    chunks = PngInfo()
    for key, text in (prompt_metadata or {}).items():
        chunks.add_text(key, text)
    if trajectory is not None:
        chunks.add_text("clvr", json.dumps(summary(trajectory, models or {})))
    given = trajectory.goal.references if trajectory else 0
    chunks.add_itxt(_XMP_KEY, _XMP.format(source=escape(source_type(given))))
    buffer = io.BytesIO()
    to_rgb(image).save(buffer, "PNG", pnginfo=chunks, compress_level=4)
    write_atomic(Path(path), buffer.getvalue())


def source_type(references: int) -> str:
    """IPTC digital source type: made by a model alone, or composed with what the user gave."""
    return _SOURCE_TYPES + ("compositeWithTrainedAlgorithmicMedia" if references else "trainedAlgorithmicMedia")


def summary(trajectory: Trajectory, models: Mapping[str, str]) -> dict[str, object]:
    """What the `clvr` chunk says: enough to draw the picture again with the same weights and settings."""
    best = trajectory.best
    return {
        "prompt": trajectory.goal.prompt,
        "seed": trajectory.seed,
        "steps": len(trajectory.steps),
        "best": best.index if best else None,
        "score": trajectory.score(best) if best else None,
        "stopped": trajectory.stop_reason,
        "models": dict(models),
    }
