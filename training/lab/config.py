"""The laboratory's recipe; `recipes/lab.yaml` fills it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clvr import builtin
from clvr.dswm.recipe import Number
from clvr.errors import SettingError

from ..data.config import EngineConfig
from ..distill import DistillConfig
from ..pprl import PPRLConfig
from ..recipe import plain
from ..sft_dit import SFTConfig

GENEVAL = ("single", "two", "counting", "colors", "position", "attribution")
"""The categories that GenEval has too, in the order of the paper's tables."""
_FREE = {"checkpoint_every", "keep", "report_seconds", "shard", "sheet_every", "gradient_checkpointing"}
"""Fields that leave the result as it is."""


@dataclass(frozen=True)
class Evaluation:
    """How the rows of the tables are measured. prompts: held-back ones of each category, fewer where it has fewer.
    rounds: of the closed loop, in the way of `policy`. steps, guidance: of the models that are not distilled; the
    distilled and merged ones draw as their folder says. width: runs that share their batches. timed: prompts on which
    the seconds of whole trajectories are taken, one at a time. shown: prompts of the contact sheet."""

    prompts: int = 100
    categories: tuple[str, ...] = (*GENEVAL, "complex")
    rounds: int = 8
    policy: str = "clvr"
    steps: int = 28
    guidance: float = 4.0
    width: int = 96
    timed: int = 20
    shown: int = 10
    seed: int = 20264

    def __post_init__(self) -> None:
        if min(self.prompts, self.rounds, self.steps, self.width, self.timed, self.shown) < 1:
            raise SettingError("evaluation: a number is below 1.", "Mend the recipe.")


@dataclass(frozen=True)
class LabConfig:
    """The whole ablation. model: the base, builtin or a klein folder that knows the built-in world. simple RL and PPRL
    share `rl`, whose `simple` the laboratory sets; rl_tasks: truncated trajectories of the dataset, as in the paper, or
    the built-in world's grammar without end. dtype: of merged weights; bf16 would round
    most of an RL increment away."""

    model: str = "builtin"
    distill: DistillConfig = DistillConfig()
    data: EngineConfig = EngineConfig()
    sft: SFTConfig = SFTConfig()
    rl: PPRLConfig = PPRLConfig(teacher="world")
    rl_tasks: Literal["dataset", "world"] = "dataset"
    dtype: Number = "fp32"
    evaluation: Evaluation = Evaluation()

    @property
    def base(self) -> Path:
        return builtin.PATH if self.model == "builtin" else Path(self.model)


def deciding(config: Any) -> dict[str, Any]:  # noqa: ANN401
    """What of a trainer's recipe changes its result, as plain data."""
    return _without(plain(config))


def _without(fields: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in fields.items() if name not in _FREE}
    return {name: _without(value) if isinstance(value, dict) else value for name, value in kept.items()}
