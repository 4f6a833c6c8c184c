"""The list of nodes that ComfyUI asks for."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class ClvrExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from . import conditioning, loop, merging, models, native, steps, trajectories

        drawing = [*models.NODES, *native.NODES, *conditioning.NODES]
        return [*drawing, *loop.NODES, *steps.NODES, *merging.NODES, *trajectories.NODES]


def extension() -> ComfyExtension:
    return ClvrExtension()
