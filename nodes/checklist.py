"""The checklist before a run: made, shown, and as text to edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from .loop import prompt_input
from .sockets import Cast, Controller
from .steps import CATEGORY

if TYPE_CHECKING:
    from torch import Tensor

    from ..clvr import ports
    from ..clvr.events import Event


class CLVRChecklist(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRChecklist",
            display_name="CLVR Checklist",
            category=CATEGORY,
            description="Turns a prompt into the checklist that a run would go by, as text to read and to edit.",
            inputs=[
                Controller.Input("controller", tooltip="Who makes the checklist."),
                prompt_input(),
                io.Image.Input("references", optional=True, tooltip="Pictures that the prompt speaks of, as a batch."),
            ],
            outputs=[
                io.String.Output(
                    display_name="checklist",
                    tooltip="One check a line. Copy it into the checklist of a run and edit it there.",
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, controller: Cast[ports.Controller], prompt: str, references: Tensor | None = None
    ) -> io.NodeOutput:
        from ..clvr import loop
        from ..clvr.checklist import to_text
        from ..clvr.events import Warned
        from ..clvr.trajectory import Goal
        from .pixels import to_pictures

        notes: list[str] = []

        def listen(event: Event) -> None:
            if isinstance(event, Warned):
                notes.append(f"# {' '.join(event.message.split())}\n")

        state = loop.start(Goal(prompt), to_pictures(references), controller.port, listen=listen)
        text = "".join(notes) + to_text(state.trajectory.goal.checks)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


NODES = [CLVRChecklist]
