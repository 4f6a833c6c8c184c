"""Judges around a judge: a panel that votes, evidence that is measured, thresholds that were calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import folder_paths
from comfy_api.latest import io

from .sockets import Cast, Verifier

if TYPE_CHECKING:
    from ..clvr import ports
    from ..clvr.judges.panel import Agreement

CATEGORY = "CLVR/judges"
AGREEMENTS = ("majority", "all", "weighted")
OFF, READINGS = "off", ("exact", "similar", "words")


class CLVRJudges(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        further = "Another judge, best another model: the mistakes of one model repeat themselves."
        return io.Schema(
            node_id="CLVRJudges",
            display_name="CLVR Judges",
            category=CATEGORY,
            description="Several judges as one: each answers every check, and their votes count.",
            inputs=[
                Verifier.Input("first", tooltip="A judge."),
                Verifier.Input("second", tooltip=further),
                Verifier.Input("third", optional=True, tooltip=further),
                Verifier.Input("fourth", optional=True, tooltip=further),
                io.Combo.Input(
                    "agreement",
                    list(AGREEMENTS),
                    default="majority",
                    tooltip="majority: what more judges say. all: what all say. weighted: what has more weight. A tie, "
                    "and under all a disagreement, leaves the check unjudged.",
                ),
                io.String.Input(
                    "weights", default="", tooltip="For weighted: a number a judge, in order, like 2,1. Empty: equal."
                ),
                io.Boolean.Input(
                    "together",
                    default=False,
                    tooltip="Ask them at the same time: for servers. Models on this machine would wait for each other.",
                ),
            ],
            outputs=[Verifier.Output(display_name="verifier")],
        )

    @classmethod
    def execute(
        cls,
        first: Cast[ports.Verifier],
        second: Cast[ports.Verifier],
        agreement: Agreement,
        weights: str,
        together: bool,
        third: Cast[ports.Verifier] | None = None,
        fourth: Cast[ports.Verifier] | None = None,
    ) -> io.NodeOutput:
        from ..clvr.judges import Panel
        from ..clvr.jury import read_weights

        members = [judge.port for judge in (first, second, third, fourth) if judge]
        given = read_weights(weights) if agreement == "weighted" else ()
        return io.NodeOutput(Cast(Panel(members, agreement, given, together)))


class CLVREvidence(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVREvidence",
            display_name="CLVR Evidence",
            category=CATEGORY,
            description="Measures beside a judge, and overrules it where that is decisive. What it cannot measure is "
            "left to the judge.",
            inputs=[
                Verifier.Input("verifier", tooltip="The judge beside whom it is measured."),
                io.Combo.Input(
                    "text",
                    [*READINGS, OFF],
                    default="exact",
                    tooltip="Read text that the prompt quotes (needs rapidocr). exact: it stands there. similar: but "
                    "for a letter or two. words: each word, in any order.",
                ),
                io.String.Input(
                    "detector",
                    default="",
                    tooltip="Detect things, to check number, colour and place: the folder of an OWLv2 or Grounding "
                    "DINO, or its name in models/detection. Empty: none.",
                ),
                io.Combo.Input(
                    "device",
                    ["auto", "cpu"],
                    tooltip="Where the detector computes. cpu leaves the graphics memory to the picture model.",
                ),
                io.Boolean.Input(
                    "measuring", default=False, tooltip="Measure pixels: for the coloured shapes of the built-in world."
                ),
                io.Boolean.Input(
                    "spare_judge",
                    default=False,
                    tooltip="Do not ask the judge what was measured. Saves time and tokens, and its word on it.",
                ),
            ],
            outputs=[Verifier.Output(display_name="verifier")],
        )

    @classmethod
    def execute(
        cls,
        verifier: Cast[ports.Verifier],
        text: Literal["exact", "similar", "words", "off"],
        detector: str,
        device: str,
        measuring: bool,
        spare_judge: bool,
    ) -> io.NodeOutput:
        from ..clvr.errors import SettingError
        from ..clvr.jury import DETECTOR, MEASURING, OCR, VLM, Jury

        names = [] if text == OFF else [f"{OCR}:{text}"]
        names += [f"{DETECTOR}:{_detector_folder(detector)}"] if detector.strip() else []
        names += [MEASURING] if measuring else []
        if not names:
            raise SettingError("CLVR Evidence measures nothing.", "Switch on text, a detector or measuring.")
        jury = Jury((VLM, *names), spare=spare_judge)
        options = {"judges": "\n".join(jury.judges), **({"spare_vlm": "yes"} if spare_judge else {})}
        return io.NodeOutput(Cast(jury.beside(verifier.port, _place(device)), {**verifier.options, **options}))


class CLVRCalibratedJudge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRCalibratedJudge",
            display_name="CLVR Calibrated Judge",
            category=CATEGORY,
            description="A judge whose probability of yes decides, not its word.",
            inputs=[
                Verifier.Input(
                    "verifier",
                    tooltip="A judge that gives probabilities: CLVR VLM (transformers), or a server with logprobs.",
                ),
                io.String.Input(
                    "threshold",
                    default="0.5",
                    tooltip="From which probability yes counts. A number; two with unjudged between them, like "
                    "0.4,0.7; or a file of clvr calibrate: its path, or its name in ComfyUI's input folder.",
                ),
            ],
            outputs=[Verifier.Output(display_name="verifier")],
        )

    @classmethod
    def fingerprint_inputs(cls, threshold: str = "", **inputs: object) -> str:
        """The judge is made anew where its file was written anew."""
        file = Path(_thresholds(threshold))
        return f"{threshold} {file.stat().st_mtime_ns}" if file.is_file() else threshold

    @classmethod
    def execute(cls, verifier: Cast[ports.Verifier], threshold: str) -> io.NodeOutput:
        from ..clvr.judges.calibrated import CalibratedVerifier
        from ..clvr.jury import read_threshold

        found = read_threshold(_thresholds(threshold))
        options = {**verifier.options, "judge_threshold": str(found)}
        return io.NodeOutput(Cast(CalibratedVerifier(verifier.port, found), options))


NODES = [CLVRJudges, CLVREvidence, CLVRCalibratedJudge]


def _detector_folder(name: str) -> str:
    """The folder in ComfyUI's models/detection that is called so; else the text as it is."""
    found = Path(folder_paths.models_dir, "detection", name.strip())
    return str(found) if (found / "config.json").is_file() else name.strip()


def _place(device: str) -> str:
    from comfy.model_management import get_torch_device

    return "cpu" if device == "cpu" else str(get_torch_device())


def _thresholds(text: str) -> str:
    """The file in ComfyUI's input folder that is called so; else the text as it is."""
    name = text.strip()
    found = Path(folder_paths.get_input_directory(), name)
    return str(found) if name and found.is_file() else name
