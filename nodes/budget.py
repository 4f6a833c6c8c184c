"""How much a run may spend."""

from __future__ import annotations

import dataclasses

from comfy_api.latest import io

from .sockets import ThinkingBudget

CUSTOM = "custom"
PRESETS = ("fast", "balanced", "thorough")


class CLVRThinkingBudget(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRThinkingBudget",
            display_name="CLVR Thinking Budget",
            category="CLVR/loops",
            description="How much the loop may spend, and when it may stop earlier.",
            inputs=[
                io.Int.Input("rounds", default=8, min=1, max=50, tooltip="Drawings of the loop, at most."),
                io.Int.Input("candidates", default=1, min=1, max=16, tooltip="Images a round; the best is kept."),
                io.Int.Input(
                    "evaluations",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Function evaluations of the generator over the whole run. 0: no limit.",
                ),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=86400.0,
                    step=1.0,
                    tooltip="Time for planning, drawing and judging; waiting for you does not count. 0: no limit.",
                ),
                io.Int.Input("vlm_calls", default=0, min=0, max=10_000, tooltip="Calls of the VLM. 0: no limit."),
                io.Int.Input(
                    "verify_every",
                    default=1,
                    min=1,
                    max=50,
                    tooltip="Check the whole goal every n-th round, in between the round's instruction.",
                ),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Stop at this share of passing checks. 1 is every check.",
                ),
                io.Int.Input(
                    "patience",
                    default=4,
                    min=1,
                    max=50,
                    tooltip="Stop after so many rounds in a row that did not raise the best score.",
                ),
                *_later_inputs(),
            ],
            outputs=[ThinkingBudget.Output(display_name="budget")],
        )

    @classmethod
    def execute(
        cls,
        rounds: int,
        candidates: int,
        evaluations: int,
        seconds: float,
        vlm_calls: int,
        verify_every: int,
        threshold: float,
        patience: int,
        tokens: int = 0,
        batch: int = 0,
        preset: str = CUSTOM,
    ) -> io.NodeOutput:
        """Under a preset the limits that default to none still hold where they are set."""
        from ..clvr.budget import Budget

        limits = {"nfe": evaluations, "seconds": seconds, "vlm_calls": vlm_calls, "tokens": tokens, "batch": batch}
        limits = {name: value for name, value in limits.items() if value}
        if preset != CUSTOM:
            return io.NodeOutput(dataclasses.replace(Budget.preset(preset), **limits))
        return io.NodeOutput(
            Budget(
                steps=rounds,
                candidates=candidates,
                verify_every=verify_every,
                threshold=threshold,
                patience=patience,
                **limits,
            )
        )


def _later_inputs() -> list[io.Input]:
    """What saved workflows may lack."""
    return [
        io.Int.Input(
            "tokens",
            default=0,
            min=0,
            max=100_000_000,
            optional=True,
            tooltip="Tokens that the VLM reads and writes, as it counts them. 0: no limit.",
        ),
        io.Int.Input(
            "batch",
            default=0,
            min=0,
            max=16,
            optional=True,
            tooltip="Candidates drawn at once; the others only where none of these passes. 0: all at once.",
        ),
        io.Combo.Input(
            "preset",
            [CUSTOM, *PRESETS],
            default=CUSTOM,
            optional=True,
            tooltip="fast: 2 rounds. balanced: 4 rounds of 2 candidates. thorough: 8 rounds of 4 candidates. A preset "
            "sets rounds, candidates, batch, verify_every, threshold and patience; any other limit that is not 0 "
            "holds as well.",
        ),
    ]


NODES = [CLVRThinkingBudget]
