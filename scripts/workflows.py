"""Draw the templates of scripts/templates.py: workflows/NAME.json, and workflows/api/NAME.json as ComfyUI queues it.

python -m scripts.workflows [TEMPLATE …]

It asks a running ComfyUI what inputs the nodes have. For klein's templates that has to be one of 2026: COMFYUI_PATH."""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.comfy import ROOT, Client, Server
from scripts.templates import TEMPLATES, Node, Template, To

Info = Mapping[str, Any]
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
HEAD, SLOT, WIDGET, TEXT = 40, 22, 26, 110
"""Heights in pixels: a node's title bar, a socket, a widget, a text field."""
PICTURES = {
    "PreviewImage": 420,
    "LoadImage": 420,
    "CLVRClosedLoop": 420,
    "CLVRGenerate": 300,
    "CLVRTakeDrawing": 300,
    "CLVRFinish": 420,
}
TOLD = 40
"""Height of the line on nodes that run a phase."""
PHASES = ("CLVRPlan", "CLVRGenerate", "CLVRVerify", "CLVRFinish", "CLVRTakeDrawing")
GAP, TOP, NOTE = 60, 100, 400
OPTIONAL_SHAPE = 7
ENDS = ("PreviewAny", "PreviewImage")
"""Nothing follows them, whatever outputs newer ComfyUIs give them."""


def draw(template: Template, info: Info) -> dict[str, Any]:
    """The UI format. Raises KeyError for a node, input or link that there is not."""
    links, nodes, frames = list(_links(template, info)), [_note(template)], []
    ids, left = _ids(template), NOTE + GAP
    for number, group in enumerate(template.groups, 1):
        top = TOP
        for node in group.nodes:
            made = _node(node, ids[node.name], (left, top), group.width, info, links)
            nodes.append(made)
            top += made["size"][1] + GAP
        frame = [left - 20, 20, group.width + 40, top - GAP]
        title = f"{number}  {group.title}"
        frames.append(
            {"id": number, "title": title, "bounding": frame, "color": group.color, "font_size": 24, "flags": {}}
        )
        left += group.width + GAP + 40
    tail = {"config": {}, "extra": {}, "version": 0.4}
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, template.name)),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": frames,
        **tail,
    }


def _ids(template: Template) -> dict[str, int]:
    """The note is number 1."""
    return {node.name: number for number, node in enumerate(template.nodes, 2)}


def declared(kind: str, info: Info) -> dict[str, tuple[Any, Mapping[str, Any], bool]]:
    """A node's inputs in order: type, settings, whether it is optional."""
    found = {}
    for group in ("required", "optional"):
        for name, spec in info[kind]["input"].get(group, {}).items():
            found[name] = (spec[0], spec[1] if len(spec) > 1 else {}, group == "optional")
    return found


def is_widget(kind: Any, settings: Mapping[str, Any]) -> bool:  # noqa: ANN401
    return (isinstance(kind, list) or kind in WIDGETS) and not settings.get("forceInput")


def _order(kind: str, info: Info) -> list[str]:
    """Inputs as the frontend numbers them: sockets first."""
    inputs = declared(kind, info)
    return sorted(inputs, key=lambda name: is_widget(*inputs[name][:2]))


def _links(template: Template, info: Info) -> Iterator[list[Any]]:
    """[id, from node, from output, to node, to input, type]."""
    ids, kinds, number = _ids(template), {node.name: node.kind for node in template.nodes}, 0
    for node in template.nodes:
        for name in _order(node.kind, info):
            source = node.inputs.get(name)
            if isinstance(source, To):
                number += 1
                typed = info[kinds[source.name]]["output"][source.output]
                place = _order(node.kind, info).index(name)
                yield [number, ids[source.name], source.output, ids[node.name], place, typed]


def _node(
    node: Node, number: int, at: tuple[int, int], width: int, info: Info, links: Iterable[list[Any]]
) -> dict[str, Any]:
    inputs = declared(node.kind, info)
    unknown = set(node.inputs) - set(inputs)
    if unknown:
        raise KeyError(f"{node.kind} has no input {', '.join(sorted(unknown))}")
    arriving = {link[4]: link[0] for link in links if link[3] == number}
    slots = [_slot(name, inputs[name], arriving.get(k)) for k, name in enumerate(_order(node.kind, info))]
    outputs = [
        {"name": name, "type": kind, "links": [li[0] for li in links if li[1:3] == [number, k]] or None}
        for k, (name, kind) in enumerate(zip(info[node.kind]["output_name"], info[node.kind]["output"], strict=True))
        if node.kind not in ENDS
    ]
    made = {
        "id": number,
        "type": node.kind,
        "pos": list(at),
        "size": [width, _height(node.kind, slots, outputs, inputs)],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": slots,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": list(_values(node, inputs)),
    }
    return made | ({"title": node.title} if node.title else {})


def _slot(name: str, spec: tuple[Any, Mapping[str, Any], bool], link: int | None) -> dict[str, Any]:
    kind, settings, optional = spec
    slot = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "link": link}
    if is_widget(kind, settings):
        slot["widget"] = {"name": name}
    return slot | ({"shape": OPTIONAL_SHAPE} if optional else {})


def _values(node: Node, inputs: Mapping[str, tuple[Any, Mapping[str, Any], bool]]) -> Iterator[Any]:
    """The widgets' values in order, with those that the frontend adds of its own."""
    for name, (kind, settings, _) in inputs.items():
        if not is_widget(kind, settings):
            continue
        options = (kind if isinstance(kind, list) else settings.get("options")) or [None]
        given = node.inputs.get(name, settings.get("default", options[0]))
        yield settings.get("default", "") if isinstance(given, To) else given
        if settings.get("control_after_generate"):
            yield "fixed"
        if settings.get("image_upload"):
            yield "image"


def _height(kind: str, slots: list[Any], outputs: list[Any], inputs: Mapping[str, Any]) -> int:
    widgets = [slot["name"] for slot in slots if "widget" in slot]
    texts = sum(bool(inputs[name][1].get("multiline")) for name in widgets)
    shown = PICTURES.get(kind, 0) + TOLD * (kind in PHASES) + TEXT * (kind == "PreviewAny")
    sockets = max(len(slots) - len(widgets), len(outputs))
    return HEAD + SLOT * sockets + WIDGET * (len(widgets) + 1) + TEXT * texts + shown


def _note(template: Template) -> dict[str, Any]:
    lines = template.note.count("\n") + len(template.note) // 42
    return {
        "id": 1,
        "type": "MarkdownNote",
        "pos": [0, 30],
        "size": [NOTE, 80 + 20 * lines],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Read me",
        "properties": {},
        "widgets_values": [template.note],
        "color": "#432",
        "bgcolor": "#653",
    }


def write(template: Template, info: Info) -> None:
    from comfy_cli.workflow_to_api import convert_ui_to_api

    drawn = draw(template, info)
    for path, found in (("", drawn), ("api/", convert_ui_to_api(drawn, dict(info)))):
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        (ROOT / "workflows" / f"{path}{template.name}.json").write_text(text, encoding="utf-8")


def main(names: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="clvr-") as base, Server(Path(base)) as server:
        info = Client(server.address).get("object_info")
        for template in TEMPLATES:
            if not names or template.name in names:
                write(template, info)
                print(f"workflows/{template.name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
