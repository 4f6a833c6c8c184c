"""The data engine's settings; `recipes/data*.yaml` fill them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clvr.errors import SettingError
from clvr.models import BUILTIN, TRANSFORMERS
from clvr.ports import Size
from clvr.shapes.controller import Where

from .machine import Retries, Rules


@dataclass(frozen=True)
class PromptConfig:
    """Where prompts come from. `files`: a .txt with one a line, or a .jsonl whose records hold them under `key`.
    `world`: how many to make up in the built-in world, outside of its held-back tenth, in the shares of `categories`.
    `limit`: at most so many candidates; 0 is all."""

    files: tuple[str, ...] = ()
    key: str = "prompt"
    world: int = 0
    categories: dict[str, float] = field(
        default_factory=lambda: {"counting": 0.1, "position": 0.2, "attribution": 0.2, "complex": 0.5}
    )
    limit: int = 0


@dataclass(frozen=True)
class DedupConfig:
    """What no training prompt may be, or be near to. `against`: suites of `clvr bench` by name, `name=PATH` for one
    whose prompts are not shipped, or files as under prompts.files. `near`, `near_own`: the Jaccard similarity of word
    trigrams, in (0, 1], from which a prompt counts as a copy of an evaluation prompt, or of an earlier candidate."""

    against: tuple[str, ...] = ("builtin", "geneval", "geneval++", "imaginebench", "ocr")
    near: float = 0.7
    near_own: float = 0.9

    def __post_init__(self) -> None:
        for name, value in (("near", self.near), ("near_own", self.near_own)):
            if not 0 < value <= 1:
                raise SettingError(f"dedup.{name} is {value:g}.", "Give a similarity above 0, at most 1.")


@dataclass(frozen=True)
class CastConfig:
    """Who draws, plans, verifies and judges, as `clvr generate` names them: `model` builtin:base, a klein folder or a
    hub id; `vlm` builtin, the address of a server, or transformers:FOLDER. `verifiers`: who verifies, as --judge; none
    is the one who plans. `judges`: who compares with the baseline, each a VLM's address (address#model), or `scores`
    and `objects`, which measure in the built-in world. `narrator`: log or vlm. `batch`: prompts that are worked on at
    the same time, their drawings in shared batches (`training.lockstep`), on one device and with the built-in planner;
    0 is the generator that ComfyUI and the command line use. `words`: how the built-in planner says where things go, in
    the first attempt, the second, and so on in turn."""

    model: str = "builtin:base"
    vlm: str = "builtin"
    vlm_model: str = ""
    steps: int | None = None
    guidance: float | None = None
    dtype: str = "auto"
    offload: str = "none"
    verifiers: tuple[str, ...] = ()
    agreement: str = "all"
    judges: tuple[str, ...] = ("scores", "objects")
    narrator: Literal["log", "vlm"] = "log"
    batch: int = 0
    words: tuple[Where, ...] = ("none", "place", "relation")

    def __post_init__(self) -> None:
        if len(self.judges) < 2:
            raise SettingError("cast.judges names fewer than two.", "The comparison with the baseline needs two.")
        if not self.words:
            raise SettingError("cast.words is empty.", "Name at least one of none, place, relation.")
        if self.narrator == "vlm" and self.vlm == BUILTIN:
            raise SettingError(
                "The built-in planner tells no stories.", "Set cast.narrator to log, or cast.vlm to a VLM."
            )


@dataclass(frozen=True)
class RuleConfig:
    """`rounds`: pictures a trajectory. `attempts`: fresh starts a prompt gets after a trajectory that was given up.
    `size`: [width, height] in pixels; the model's own when not given. `guard`: the judges end a trajectory in which an
    edit made the picture worse."""

    rounds: int = 8
    attempts: int = 3
    size: Size | None = None
    guard: bool = True
    retries: Retries = Retries()

    def __post_init__(self) -> None:
        for name, value in (("rounds", self.rounds), ("attempts", self.attempts)):
            if value < 1:
                raise SettingError(f"rules.{name} is {value}.", "Give a number from 1.")

    @property
    def machine(self) -> Rules:
        return Rules(self.rounds, self.retries, self.size, self.guard)


@dataclass(frozen=True)
class RunConfig:
    """`devices`: a process for each, on one machine; cpu twice is two processes. `threads`: prompts that a process
    works on at the same time, sharing its generator. `ray`: the address of a Ray cluster, 'local' for one of its own;
    '' is none. There each device is an actor with `gpus` GPUs."""

    devices: tuple[str, ...] = ("auto",)
    threads: int = 1
    ray: str = ""
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not self.devices or self.threads < 1:
            raise SettingError("Nobody would work: run.devices is empty or run.threads below 1.", "Name a device.")


@dataclass(frozen=True)
class EngineConfig:
    """`shard`: records a file. `shown`: of how many prompts the pictures of given-up trajectories are kept, for the
    sample sheet; those of kept ones are all kept."""

    prompts: PromptConfig = PromptConfig()
    dedup: DedupConfig = DedupConfig()
    cast: CastConfig = CastConfig()
    rules: RuleConfig = RuleConfig()
    run: RunConfig = RunConfig()
    seed: int = 0
    shard: int = 1000
    shown: int = 200

    def __post_init__(self) -> None:
        if self.run.threads > 1 and self.cast.vlm.startswith(TRANSFORMERS):
            raise SettingError("A VLM in this process takes one call at a time.", "Set run.threads to 1.")
        run = self.run
        if self.cast.batch and (self.cast.vlm != BUILTIN or run.ray or len(run.devices) > 1 or run.threads > 1):
            told = "cast.batch draws on one device, for the built-in planner, without run.threads or run.ray."
            raise SettingError(told, "Set it to 0.")
        if self.shard < 1:
            raise SettingError(f"shard is {self.shard}.", "Give a number from 1.")
