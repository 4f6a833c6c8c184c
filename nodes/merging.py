"""Δ-Space Weight Merge: of loaded MODELs, lazily, and of files, into a new file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

if TYPE_CHECKING:
    from pathlib import Path

    from comfy.model_patcher import ModelPatcher

    from ..clvr.dswm.merge import Progress
    from ..clvr.dswm.recipe import Number, Recipe
    from .model_files import Stamp

CATEGORY = "CLVR/merging"
GB = 1e9


def strength_input(name: str, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=tooltip)


class CLVRMergeModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRMergeModels",
            display_name="DSWM Merge",
            category=CATEGORY,
            description="Gives an aligned model the few steps of a distilled one: what alignment changed in the "
            "base is added to the distilled weights, as they are loaded and without a copy of them.",
            inputs=[
                io.Model.Input("base", tooltip="What the distilled and the aligned model were made from."),
                io.Model.Input(
                    "distilled",
                    tooltip="The model that draws in few steps. LoRAs that are loaded on it apply first; a merge "
                    "that comes in here is continued, so that several aligned models can be added in a row.",
                ),
                io.Model.Input(
                    "aligned", tooltip="The fine-tuned model, or the base with LoRAs loaded on it, or both."
                ),
                strength_input("lambda_distilled", "How much of the distillation is added to the base. 1: all of it."),
                strength_input("lambda_align", "How much of the alignment is added. 1: all of it; 0: nothing."),
            ],
            outputs=[io.Model.Output(display_name="merged")],
        )

    @classmethod
    def execute(
        cls,
        base: ModelPatcher,
        distilled: ModelPatcher,
        aligned: ModelPatcher,
        lambda_distilled: float,
        lambda_align: float,
    ) -> io.NodeOutput:
        from .merged_weights import merged

        return io.NodeOutput(merged(base, distilled, aligned, lambda_distilled, lambda_align))


class CLVRMergeFiles(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from .model_files import names

        models, loras = names("diffusion_models"), names("loras")
        inside = "Instead of the file: a path inside models/diffusion_models or models/diffusers, such as a folder "
        return io.Schema(
            node_id="CLVRMergeFiles",
            display_name="DSWM Merge Files",
            category=CATEGORY,
            description="Merges base, distilled and aligned weights into one file in models/diffusion_models, exactly "
            "and with little memory, and reports what the merge kept.",
            inputs=[
                io.Combo.Input("base", models, tooltip="The base model. Needed unless only a LoRA is added."),
                io.Combo.Input("distilled", models, tooltip="The model that draws in few steps."),
                io.Combo.Input("aligned", models, tooltip="A fine-tune of the base."),
                io.Combo.Input(
                    "lora", loras, tooltip="A LoRA of the base, or of the aligned model: then both are added."
                ),
                strength_input("lambda_distilled", "How much of the distillation is added to the base."),
                strength_input("lambda_aligned", "How much of the fine-tune is added."),
                strength_input("lambda_lora", "How much of the LoRA is added."),
                io.Combo.Input(
                    "dtype",
                    ["bf16", "fp16", "fp32"],
                    tooltip="Number format of the new file. bf16 rounds small increments away: see the report.",
                ),
                io.String.Input(
                    "name",
                    default="clvr/merged",
                    tooltip="The new file in models/diffusion_models; .safetensors is added.",
                ),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace the file when it is there already."),
                io.String.Input("base_path", default="", optional=True, tooltip=inside + "in diffusers' layout."),
                io.String.Input("distilled_path", default="", optional=True, tooltip=inside + "in diffusers' layout."),
                io.String.Input("aligned_path", default="", optional=True, tooltip=inside + "in diffusers' layout."),
                io.String.Input(
                    "lora_path",
                    default="",
                    optional=True,
                    tooltip="Instead of the file: a path inside models/loras, such as a PEFT folder.",
                ),
            ],
            outputs=[
                io.AnyType.Output(
                    display_name="model name", tooltip="The new file's name, for Load Diffusion Model's unet_name."
                ),
                io.String.Output(display_name="path", tooltip="The new file's full path."),
                io.String.Output(display_name="report", tooltip="What was added, and what the rounding kept of it."),
                io.Image.Output(display_name="plot", tooltip="The report, block by block."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        from ..clvr.errors import OutputError
        from .model_files import target

        try:
            if name is not None:
                target(name)
        except OutputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> list[Stamp | int]:  # noqa: ANN401
        """What a merge depends on besides its inputs: the files' stamps, and how often its output was lost."""
        from . import model_files

        recipe = recipe_of(**inputs)
        sources = [recipe.base, recipe.distilled.path if recipe.distilled else None, *(k.path for k in recipe.align)]
        return [*model_files.stamps(sources), _losses(recipe.out)]

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:  # noqa: ANN401
        from comfy_api.latest import ui

        from ..clvr.dswm.merge import merge
        from ..clvr.dswm.plot import draw
        from ..clvr.dswm.report import Report
        from .model_files import listed, stamp
        from .pixels import to_tensor

        recipe = recipe_of(**inputs)
        outcome = merge(recipe, Bar(cls.hidden.unique_id))
        _written[outcome.path] = stamp(outcome.path)
        report = Report.of(outcome)
        plot = to_tensor([draw(report)])
        shown = {**ui.PreviewImage(plot, cls=cls).as_dict(), **ui.PreviewText(report.text()).as_dict()}
        return io.NodeOutput(listed(outcome.path), str(outcome.path), report.text(), plot, ui=shown)


NODES = [CLVRMergeModels, CLVRMergeFiles]

_written: dict[Path, Stamp] = {}
"""The files that this process merged, as they were written."""
_lost: dict[Path, int] = {}


def _losses(out: Path) -> int:
    """How often a merged file was found changed or gone, so that it is merged again, once."""
    from .model_files import stamp

    if out in _written and not (out.exists() and stamp(out) == _written[out]):
        del _written[out]
        _lost[out] = _lost.get(out, 0) + 1
    return _lost.get(out, 0)


def recipe_of(
    base: str,
    distilled: str,
    aligned: str,
    lora: str,
    lambda_distilled: float,
    lambda_aligned: float,
    lambda_lora: float,
    dtype: Number,
    name: str,
    overwrite: bool,
    base_path: str = "",
    distilled_path: str = "",
    aligned_path: str = "",
    lora_path: str = "",
) -> Recipe:
    """The node's widgets as a recipe. Raises MissingFileError, OutputError, SettingError."""
    from ..clvr.dswm.recipe import Recipe, Source, Strength
    from .model_files import LORAS, MODELS, chosen, target

    def source(path: Path | None, strength: float) -> Source | None:
        return Source(path, Strength(strength)) if path else None

    increments = (
        source(chosen(MODELS, aligned, aligned_path, "aligned"), lambda_aligned),
        source(chosen(LORAS, lora, lora_path, "lora"), lambda_lora),
    )
    return Recipe(
        target(name),
        chosen(MODELS, base, base_path, "base"),
        source(chosen(MODELS, distilled, distilled_path, "distilled"), lambda_distilled),
        tuple(increment for increment in increments if increment),
        dtype,
        overwrite=overwrite,
    )


class Bar:
    """Shows a merge's progress on the node, and ends the merge when the user interrupts."""

    def __init__(self, node: str) -> None:
        self._node = node

    def __call__(self, progress: Progress) -> None:
        from comfy_api.latest import ComfyAPISync
        from server import PromptServer

        from .live import interrupted

        interrupted()
        ComfyAPISync().execution.set_progress(progress.bytes_done, progress.bytes, node_id=self._node)
        server = PromptServer.instance
        server.send_progress_text(in_short(progress), self._node, server.client_id)


def in_short(progress: Progress) -> str:
    """'12 of 149 tensors, 0.4 of 7.8 GB, 20 s left'."""
    done, all_bytes = progress.bytes_done, progress.bytes
    left = f", {progress.seconds * (all_bytes - done) / done:.0f} s left" if 0 < done < all_bytes else ""
    return f"{progress.tensors_done} of {progress.tensors} tensors, {done / GB:.1f} of {all_bytes / GB:.1f} GB{left}"
