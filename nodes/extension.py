"""The list of nodes that ComfyUI asks for."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class ClvrExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from . import (
            budget,
            checklist,
            conditioning,
            judges,
            loop,
            loops,
            merging,
            models,
            native,
            panel,
            pause,
            steps,
            trajectories,
            vlm_clip,
            vlm_transformers,
        )

        drawing = [*models.NODES, *vlm_clip.NODES, *vlm_transformers.NODES, *native.NODES, *conditioning.NODES]
        panel.register()
        return [
            *drawing,
            *judges.NODES,
            *budget.NODES,
            *loop.NODES,
            *loops.NODES,
            *steps.NODES,
            *checklist.NODES,
            *pause.NODES,
            *merging.NODES,
            *trajectories.NODES,
        ]


def extension() -> ComfyExtension:
    return ClvrExtension()
