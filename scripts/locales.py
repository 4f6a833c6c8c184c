"""Write locales/en|zh|ja from the nodes' own texts and the phrase books in scripts/phrases/: nodeDefs.json for the
nodes, main.json for the categories that they are listed under.

python -m scripts.locales

A text that a phrase book lacks is named; add it there and run this again."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.comfy import ROOT, Client, Server

LANGUAGES = ("en", "zh", "ja")
SOURCE = "en"
HOSTED = ("CLVRConditioning", "CLVRGeneratorNative", "CLVRVLMFromCLIP")
"""Their description says where the running ComfyUI is too old. In English the node's own is shown, which knows;
elsewhere the one under the node's id in the phrase book, which names what is needed."""

Info = Mapping[str, Any]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="clvr-") as base, Server(Path(base)) as server:
        info = Client(server.address).get("object_info")
    lacking = False
    for language in LANGUAGES:
        known = phrases(language)
        for text in sorted(set(texts(info)) - set(known)) if language != SOURCE else ():
            lacking = True
            print(f"{language}: {text}", file=sys.stderr)
        for name, found in files(info, language).items():
            path = path_of(language, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(lacking)


def files(info: Info, language: str) -> dict[str, Any]:
    """A language's files by their name."""
    return {"main": {"nodeCategories": categories(info, language)}, "nodeDefs": definitions(info, language)}


def path_of(language: str, name: str) -> Path:
    return ROOT / "locales" / language / f"{name}.json"


def phrases(language: str) -> dict[str, str]:
    """English text -> the language's."""
    if language == SOURCE:
        return {}
    return json.loads((ROOT / "scripts" / "phrases" / f"{language}.json").read_text(encoding="utf-8"))


def texts(info: Info) -> Iterator[str]:
    """Every text that is to be translated."""
    seen: list[str] = []
    for node in ours(info):
        _definition(node, info, lambda text: seen.append(text) or text, "")
    yield from seen
    yield from categories(info, SOURCE)


def definitions(info: Info, language: str) -> dict[str, Any]:
    """The nodes as ComfyUI's frontend reads them, in one language; English where a phrase is lacking."""
    known = phrases(language)
    return {node: _definition(node, info, lambda text: known.get(text, text), language) for node in ours(info)}


def categories(info: Info, language: str) -> dict[str, str]:
    """The parts of the nodes' categories, which the frontend translates one by one; CLVR is a name."""
    known = phrases(language)
    parts: set[str] = {part for node in ours(info) for part in info[node]["category"].split("/")[1:]}
    return {part: known.get(part, part) for part in sorted(parts)}


def ours(info: Info) -> list[str]:
    return sorted(name for name in info if name.startswith("CLVR"))


def _definition(node: str, info: Info, say: Callable[[str], str], language: str) -> dict[str, Any]:
    spec = info[node]
    found: dict[str, Any] = {"display_name": say(spec["display_name"])}
    if node not in HOSTED:
        found["description"] = say(spec["description"])
    elif language != SOURCE:
        found["description"] = say(node)
    inputs = [pair for group in ("required", "optional") for pair in spec["input"].get(group, {}).items()]
    if inputs:
        found["inputs"] = {name: _said(name, settings[1].get("tooltip"), say) for name, settings in inputs}
    tooltips = spec.get("output_tooltips") or [None] * len(spec["output_name"])
    outputs = zip(spec["output_name"], tooltips, strict=True)
    found["outputs"] = {str(k): _said(name, tooltip, say) for k, (name, tooltip) in enumerate(outputs)}
    return found


def _said(name: str, tooltip: str | None, say: Callable[[str], str]) -> dict[str, str]:
    return {"name": say(name), **({"tooltip": say(tooltip)} if tooltip else {})}


if __name__ == "__main__":
    sys.exit(main())
