"""What the templates hold; scripts/workflows.py draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.comfy import ROOT


@dataclass(frozen=True)
class Node:
    """`inputs`: a widget's value, or for a link the `To` of another node's output."""

    name: str
    kind: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class To:
    """A link from the `output`-th output of the node called `name`."""

    name: str
    output: int = 0


@dataclass(frozen=True)
class Group:
    """Nodes under each other, with a frame around them."""

    title: str
    nodes: tuple[Node, ...]
    width: int = 340
    color: str = "#3f789e"


@dataclass(frozen=True)
class Template:
    """Its note is scripts/notes/NAME.md."""

    name: str
    groups: tuple[Group, ...]

    @property
    def note(self) -> str:
        return (ROOT / "scripts" / "notes" / f"{self.name}.md").read_text(encoding="utf-8").rstrip()

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(node for group in self.groups for node in group.nodes)


GREEN, VIOLET = "#8A8", "#a1309b"
SHAPES = "two red circles above a blue square and a green triangle"
SCENE = (
    "A watercolour of a small harbour: three fishing boats, a red one in the middle, a white lighthouse on the left, "
    "two gulls above the boats"
)
KLEIN = (
    Node("model", "UNETLoader", {"unet_name": "flux-2-klein-4b.safetensors"}),
    Node("text", "CLIPLoader", {"clip_name": "qwen_3_4b.safetensors", "type": "flux2"}, "Load klein's text encoder"),
    Node("vae", "VAELoader", {"vae_name": "flux2-vae.safetensors"}),
)
SEEING = Node(
    "seeing",
    "CLIPLoader",
    {"clip_name": "qwen3vl_8b_fp8_scaled.safetensors", "type": "qwen_image"},
    "Load Qwen3-VL",
)
GENERATOR = Node("generator", "CLVRGeneratorNative", {"model": To("model"), "clip": To("text"), "vae": To("vae")})
VLM = Node("vlm", "CLVRVLMFromCLIP", {"clip": To("seeing")})
SERVER = Node("vlm", "CLVRVLMServer", {})
BUDGET = Node("budget", "CLVRThinkingBudget", {"rounds": 5})
BUILTIN = (Node("generator", "CLVRGeneratorBuiltin"), Node("vlm", "CLVRControllerBuiltin"))


def loop(prompt: str, size: int = 0, name: str = "loop", **more: object) -> Node:
    """The closed loop in one node. `size`: pixels of a side."""
    ports = {"generator": To("generator"), "controller": To("vlm"), "verifier": To("vlm", 1)}
    given = {"prompt": prompt, "width": size, "height": size, "budget": To("budget"), **more}
    return Node(name, "CLVRClosedLoop", {**ports, **given})


def begin(prompt: str, size: int = 0) -> Node:
    given = {"controller": To("vlm"), "prompt": prompt, "width": size, "height": size, "budget": To("budget")}
    return Node("begin", "CLVRStart", given)


def came_out(loop: str = "loop") -> Group:
    """What a closed loop leaves to look at."""
    sheet = Node("sheet", "PreviewImage", {"images": To(loop, 1)}, "Contact sheet")
    return Group("What came out", (sheet, Node("report", "PreviewAny", {"source": To(loop, 3)}, "Report")), 760, VIOLET)


def finished(folder: str, last: str = "end") -> Group:
    """The end of a run of single nodes, of which the one called `last` is the last."""
    nodes = (
        Node("finish", "CLVRFinish", {"run": To(last)}),
        Node("sheet", "PreviewImage", {"images": To("finish", 1)}, "Contact sheet"),
        Node("keep", "CLVRSaveTrajectory", {"trajectory": To("finish", 2), "folder": folder}),
    )
    return Group("What came out", nodes, 640, VIOLET)


CLOSED_LOOP = Template(
    "clvr_closed_loop",
    (
        Group("Who draws, plans, judges", (*BUILTIN, Node("budget", "CLVRThinkingBudget"))),
        Group("The loop", (loop(SHAPES),), 440, GREEN),
        came_out(),
    ),
)


def round_of_nodes(number: int, before: str) -> Group:
    """Plan, draw and verify as single nodes after the node called `before`."""
    plan, paint, judge = (f"{phase} {number}" for phase in ("plan", "paint", "judge"))
    nodes = (
        Node(plan, "CLVRPlan", {"run": To(before), "controller": To("vlm")}),
        Node(f"decision {number}", "PreviewAny", {"source": To(plan, 1)}, "Decision"),
        Node(paint, "CLVRGenerate", {"run": To(plan), "generator": To("generator")}),
        Node(judge, "CLVRVerify", {"run": To(paint), "verifier": To("vlm", 1)}),
        Node(f"verdict {number}", "PreviewAny", {"source": To(judge, 3)}, "Verdict"),
    )
    return Group(f"Round {number}", nodes, 320, GREEN)


STEP_BY_STEP = Template(
    "clvr_step_by_step",
    (
        Group("Who draws, plans, judges", (*BUILTIN, Node("budget", "CLVRThinkingBudget"))),
        Group("The goal", (begin(SHAPES), Node("checks", "PreviewAny", {"source": To("begin", 1)}, "Checklist"))),
        round_of_nodes(1, "begin"),
        round_of_nodes(2, "judge 1"),
        round_of_nodes(3, "judge 2"),
        finished("clvr/steps", "judge 3"),
    ),
)

NATIVE_LOOP = Template(
    "clvr_klein_native",
    (
        Group("The models", (*KLEIN, SEEING)),
        Group("Who draws, plans, judges", (GENERATOR, VLM, BUDGET)),
        Group("The loop", (loop(SCENE, 1024),), 440, GREEN),
        came_out(),
    ),
)

SERVED_LOOP = Template(
    "clvr_klein_server",
    (
        Group("The models", KLEIN),
        Group("Who draws, plans, judges", (GENERATOR, SERVER, BUDGET)),
        Group("The loop", (loop(SCENE, 1024),), 440, GREEN),
        came_out(),
    ),
)

LOOP_OF_NODES = Template(
    "clvr_loop",
    (
        Group("Who draws, plans, judges", (*BUILTIN, BUDGET)),
        Group(
            "The goal",
            (begin(SHAPES), Node("checks", "PreviewAny", {"source": To("begin", 1)}, "Checklist")),
        ),
        Group(
            "A round",
            (
                Node("start", "CLVRLoopStart", {"run": To("begin")}),
                Node("plan", "CLVRPlan", {"run": To("start", 1), "controller": To("vlm")}),
                Node("paint", "CLVRGenerate", {"run": To("plan"), "generator": To("generator")}),
                Node("judge", "CLVRVerify", {"run": To("paint"), "verifier": To("vlm", 1)}),
                Node("end", "CLVRLoopEnd", {"loop": To("start"), "run": To("judge")}),
            ),
            300,
            GREEN,
        ),
        Group(
            "Seen every round",
            (
                Node("decision", "PreviewAny", {"source": To("plan", 1)}, "Decision"),
                Node("canvas", "PreviewImage", {"images": To("judge", 1)}, "Canvas"),
                Node("verdict", "PreviewAny", {"source": To("judge", 3)}, "Verdict"),
            ),
            300,
        ),
        finished("clvr/loop"),
    ),
)

OWN_SAMPLER = Template(
    "clvr_own_sampler",
    (
        Group("The models", (*KLEIN, SEEING)),
        Group("The goal", (VLM, BUDGET, begin(SCENE, 1024))),
        Group(
            "A round begins",
            (
                Node("start", "CLVRLoopStart", {"run": To("begin")}),
                Node("plan", "CLVRPlan", {"run": To("start", 1), "controller": To("vlm")}),
                Node("cond", "CLVRConditioning", {"run": To("plan"), "clip": To("text"), "vae": To("vae")}),
                Node("decision", "PreviewAny", {"source": To("plan", 1)}, "Decision"),
            ),
            300,
            GREEN,
        ),
        Group(
            "Your sampler",
            (
                Node(
                    "guider",
                    "CFGGuider",
                    {"model": To("model"), "positive": To("cond", 1), "negative": To("cond", 2), "cfg": 1.0},
                ),
                Node("sampler", "KSamplerSelect", {"sampler_name": "euler"}),
                Node("sigmas", "Flux2Scheduler", {"steps": 4, "width": To("cond", 6), "height": To("cond", 7)}),
                Node(
                    "sample",
                    "SamplerCustomAdvanced",
                    {
                        "noise": To("cond", 4),
                        "guider": To("guider"),
                        "sampler": To("sampler"),
                        "sigmas": To("sigmas"),
                        "latent_image": To("cond", 3),
                    },
                ),
                Node("decode", "VAEDecode", {"samples": To("sample"), "vae": To("vae")}),
            ),
            300,
        ),
        Group(
            "A round ends",
            (
                Node("take", "CLVRTakeDrawing", {"run": To("cond"), "images": To("decode"), "evaluations": 4}),
                Node("judge", "CLVRVerify", {"run": To("take"), "verifier": To("vlm", 1)}),
                Node("verdict", "PreviewAny", {"source": To("judge", 3)}, "Verdict"),
                Node("end", "CLVRLoopEnd", {"loop": To("start"), "run": To("judge")}),
            ),
            300,
            GREEN,
        ),
        finished("clvr/own"),
    ),
)

EDIT = Template(
    "clvr_edit",
    (
        Group("Who draws, plans, judges", (*BUILTIN, BUDGET)),
        Group(
            "A picture to start from",
            (loop("a blue square and a green triangle", name="first", folder="clvr/before"),),
            440,
        ),
        Group(
            "The edit",
            (loop("make the blue square yellow", references=To("first"), folder="clvr/edit"),),
            440,
            GREEN,
        ),
        came_out(),
    ),
)

IN_THE_LOOP = Template(
    "clvr_human_in_the_loop",
    (
        Group(
            "Who draws, plans, judges",
            (*BUILTIN, Node("budget", "CLVRThinkingBudget", {"rounds": 5, "candidates": 2})),
        ),
        Group("The loop", (loop(SHAPES, pause="both", folder="clvr/together"),), 440, GREEN),
        came_out(),
    ),
)

BASE, DISTILLED, ALIGNED, LORA = (
    "flux-2-klein-base-4b.safetensors",
    "flux-2-klein-4b.safetensors",
    "my-klein-base-4b-sft.safetensors",
    "my-klein-base-4b-rl-lora.safetensors",
)

MERGE_FILES = Template(
    "clvr_merge_files",
    (
        Group(
            "What is merged",
            (
                Node(
                    "merge",
                    "CLVRMergeFiles",
                    {"base": BASE, "distilled": DISTILLED, "aligned": ALIGNED, "lora": LORA},
                ),
            ),
            420,
            GREEN,
        ),
        Group(
            "What the merge kept",
            (
                Node("plot", "PreviewImage", {"images": To("merge", 3)}, "Plot"),
                Node("report", "PreviewAny", {"source": To("merge", 2)}, "Report"),
            ),
            760,
            VIOLET,
        ),
    ),
)

MERGE_MODELS = Template(
    "clvr_merge_models",
    (
        Group(
            "Three models",
            tuple(
                Node(title.lower(), "UNETLoader", {"unet_name": file}, title)
                for title, file in (("Base", BASE), ("Distilled", DISTILLED), ("Aligned", ALIGNED))
            ),
        ),
        Group(
            "The merge",
            (
                Node(
                    "merge",
                    "CLVRMergeModels",
                    {"base": To("base"), "distilled": To("distilled"), "aligned": To("aligned")},
                ),
            ),
            color=GREEN,
        ),
        Group(
            "What to draw",
            (
                *KLEIN[1:],
                Node("prompt", "CLIPTextEncode", {"clip": To("text"), "text": "two red circles above a blue square"}),
                Node("nothing", "ConditioningZeroOut", {"conditioning": To("prompt")}),
            ),
        ),
        Group(
            "Four steps",
            (
                Node(
                    "guider",
                    "CFGGuider",
                    {"model": To("merge"), "positive": To("prompt"), "negative": To("nothing"), "cfg": 1.0},
                ),
                Node("noise", "RandomNoise", {"noise_seed": 1}),
                Node("sampler", "KSamplerSelect", {"sampler_name": "euler"}),
                Node("sigmas", "Flux2Scheduler", {"steps": 4}),
                Node("empty", "EmptyFlux2LatentImage"),
            ),
        ),
        Group(
            "The drawing",
            (
                Node(
                    "sample",
                    "SamplerCustomAdvanced",
                    {
                        "noise": To("noise"),
                        "guider": To("guider"),
                        "sampler": To("sampler"),
                        "sigmas": To("sigmas"),
                        "latent_image": To("empty"),
                    },
                ),
                Node("decode", "VAEDecode", {"samples": To("sample"), "vae": To("vae")}),
                Node("picture", "PreviewImage", {"images": To("decode")}, "Drawing"),
            ),
            560,
            VIOLET,
        ),
    ),
)

TEMPLATES = (
    CLOSED_LOOP,
    STEP_BY_STEP,
    NATIVE_LOOP,
    SERVED_LOOP,
    LOOP_OF_NODES,
    OWN_SAMPLER,
    EDIT,
    IN_THE_LOOP,
    MERGE_FILES,
    MERGE_MODELS,
)
