"""Trajectories: kept in ComfyUI's output folder, read again, shown."""

from __future__ import annotations

from comfy_api.latest import io, ui

from .sockets import Run, Trajectory

CATEGORY = "CLVR/trajectories"
SHAREGPT, REPORT = "ShareGPT", "report"
EXPORTS = {"ShareGPT and report": (SHAREGPT, REPORT), SHAREGPT: (SHAREGPT,), REPORT: (REPORT,)}


class CLVRSaveTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRSaveTrajectory",
            display_name="CLVR Save Trajectory",
            category=CATEGORY,
            description="Keeps a run: its images, trajectory, final picture, contact sheet and report.",
            inputs=[
                Trajectory.Input("trajectory", tooltip="A finished run."),
                io.String.Input(
                    "folder",
                    default="clvr/run",
                    tooltip="Where in ComfyUI's output folder; a number is added. A run that lies there already, under "
                    "this name, stays in its folder.",
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="Path of the HTML report.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectory: Run, folder: str) -> io.NodeOutput:
        from ..clvr import journal
        from . import board, books
        from .records import header, metadata, new_folder, present

        kept = books.kept_under(trajectory, folder)
        if kept is None:
            kept = new_folder(folder)
            journal.save(kept, header(trajectory), trajectory.state.trajectory, trajectory.images)
        board.kept(trajectory.id, kept)
        report = present(trajectory, kept, metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo))
        return io.NodeOutput(str(report), ui=ui.PreviewText(f"Kept in {kept}"))


class CLVRLoadTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRLoadTrajectory",
            display_name="CLVR Load Trajectory",
            category=CATEGORY,
            description="Reads a kept run again, one that was interrupted too.",
            inputs=[
                io.String.Input(
                    "folder",
                    default="clvr/run_00001",
                    tooltip="A run's folder within ComfyUI's output or input folder.",
                )
            ],
            outputs=[
                Trajectory.Output(display_name="trajectory"),
                io.Image.Output(display_name="final"),
                io.Image.Output(display_name="contact sheet"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> float:
        """When the journal was last written, so that a run that went on is read anew."""
        from ..clvr.journal import JOURNAL
        from .records import known_folder

        return (known_folder(folder) / JOURNAL).stat().st_mtime

    @classmethod
    def validate_inputs(cls, folder: str) -> bool | str:
        from ..clvr.errors import MissingFileError
        from .records import known_folder, unfinished

        try:
            known_folder(folder)
        except MissingFileError as error:
            names = ", ".join(unfinished())
            return f"{error} Unfinished runs: {names}." if names else str(error)
        return True

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        from .records import load, pictures_of

        run = load(folder)
        return io.NodeOutput(run, *pictures_of(run))


class CLVRShowTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRShowTrajectory",
            display_name="CLVR Show Trajectory",
            category=CATEGORY,
            description="Shows a run's rounds as a contact sheet, and tells what happened.",
            inputs=[Trajectory.Input("trajectory", tooltip="A run.")],
            outputs=[
                io.Image.Output(display_name="contact sheet"),
                io.String.Output(display_name="story", tooltip="Each round in words."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectory: Run) -> io.NodeOutput:
        from .records import pictures_of, story

        _, sheet = pictures_of(trajectory)
        return io.NodeOutput(sheet, story(trajectory.state.trajectory), ui=ui.PreviewImage(sheet, cls=cls))


class CLVRExportTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRExportTrajectory",
            display_name="CLVR Export Trajectory",
            category=CATEGORY,
            description="Writes a run for others: as a training conversation with its images, and as one page to read.",
            inputs=[
                Trajectory.Input("trajectory", tooltip="A run."),
                io.Combo.Input(
                    "content",
                    list(EXPORTS),
                    tooltip="ShareGPT: sharegpt.json and images/, as multimodal fine-tuning tools read them. report: "
                    "report.html, one file.",
                ),
                io.String.Input(
                    "folder",
                    default="clvr/export",
                    tooltip="Where in ComfyUI's output folder; a number is added.",
                ),
            ],
            outputs=[io.String.Output(display_name="folder", tooltip="Path of the folder that was written.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectory: Run, content: str, folder: str) -> io.NodeOutput:
        from .records import export_conversation, new_folder, report

        target, wanted = new_folder(folder), EXPORTS[content]
        if SHAREGPT in wanted:
            export_conversation(trajectory, target)
        if REPORT in wanted:
            report(trajectory, target)
        return io.NodeOutput(str(target), ui=ui.PreviewText(f"Exported to {target}"))


NODES = [CLVRSaveTrajectory, CLVRLoadTrajectory, CLVRShowTrajectory, CLVRExportTrajectory]
