"""Closed-Loop Visual Reasoning for ComfyUI. Nothing of it is imported before ComfyUI asks for its nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


def comfy_entrypoint() -> ComfyExtension:
    from .nodes.extension import extension

    return extension()
