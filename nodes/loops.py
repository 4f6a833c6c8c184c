"""A loop around the user's own graph: Loop Start, any nodes, Loop End.

Loop End is reached once the nodes between the two have run, and puts a copy of them in its own place, until the
run has stopped. A copy reports on the node that it was copied from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .sockets import Loop, LoopState, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from comfy_execution.graph import DynamicPrompt
    from comfy_execution.graph_utils import GraphBuilder

CATEGORY = "CLVR/loops"
LAPS = 50
"""ComfyUI tells the browser of every node there is at every progress step: with 100 copies that is 90 MB."""
AGAIN = "again"


class CLVRLoopStart(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRLoopStart",
            display_name="CLVR Loop Start",
            category=CATEGORY,
            description="What lies between here and CLVR Loop End is repeated until the run stops.",
            inputs=[LoopState.Input("run", tooltip="From CLVR Start, or any run that shall go on.")],
            outputs=[
                Loop.Output(display_name="loop", tooltip="For CLVR Loop End."),
                LoopState.Output(display_name="run", tooltip="The run at the beginning of a round."),
                io.Int.Output(display_name="round", tooltip="Rounds of the run that are complete."),
            ],
        )

    @classmethod
    def execute(cls, run: Run) -> io.NodeOutput:
        begun = dataclasses.replace(run, entered=run.state)
        return io.NodeOutput(None, begun, len(run.state.trajectory.steps))


class CLVRLoopEnd(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRLoopEnd",
            display_name="CLVR Loop End",
            category=CATEGORY,
            description="Goes back to CLVR Loop Start until the run has reached its goal, used its budget or was "
            f"stopped; {LAPS} times at most.",
            inputs=[
                Loop.Input("loop", tooltip="From CLVR Loop Start."),
                LoopState.Input("run", tooltip="The run at the end of a round, from CLVR Verify."),
            ],
            outputs=[LoopState.Output(display_name="run", tooltip="The run after the last round.")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            enable_expand=True,
        )

    @classmethod
    def execute(cls, loop: None, run: Run) -> io.NodeOutput:
        from ..clvr.loop import stopped
        from .live import interrupted

        interrupted()
        if stopped(run.state):
            return io.NodeOutput(left(run))
        if run.lap + 1 >= LAPS:
            reason = f"the loop came round {LAPS} times"
            return io.NodeOutput(left(dataclasses.replace(run, state=dataclasses.replace(run.state, stop=reason))))
        require_progress(run)
        prompt = cls.hidden.dynprompt
        graph, end = another_lap(prompt, first(prompt, cls.hidden.unique_id), run)
        return io.NodeOutput(end, expand=graph.finalize())


NODES = [CLVRLoopStart, CLVRLoopEnd]


def left(run: Run) -> Run:
    """The run outside of the loop, ready for another one."""
    return dataclasses.replace(run, lap=0, entered=None)


def require_progress(run: Run) -> None:
    """Raises SettingError where a pass through the loop did nothing, as every further one would."""
    from ..clvr.errors import SettingError

    if run.entered is None:
        raise SettingError("The run at Loop End did not come through Loop Start.", "Lead it from one to the other.")
    if run.entered is run.state:
        raise SettingError(
            "Nothing happens to the run between Loop Start and Loop End.",
            "Put CLVR Plan, CLVR Generate (or CLVR Conditioning … CLVR Take Drawing) and CLVR Verify in between.",
        )


def first(prompt: DynamicPrompt, end: str) -> str:
    """The Loop End of which this one is a copy, made by itself; `end` where it is none."""
    shown = prompt.get_display_node_id(end)
    parent = prompt.get_parent_node_id(end)
    while parent is not None and prompt.get_display_node_id(parent) == shown:
        end, parent = parent, prompt.get_parent_node_id(parent)
    return end


def another_lap(prompt: DynamicPrompt, end: str, run: Run) -> tuple[GraphBuilder, list[Any]]:
    """A copy of the loop that ends at `end`, beginning with `run`, and the output of its Loop End."""
    from comfy_execution.graph_utils import GraphBuilder

    start = prompt.get_node(end)["inputs"]["loop"][0]
    inside = body(prompt, start, end)
    graph = GraphBuilder(f"{end}.{run.lap + 1}.")  # ids of the same length in every lap: the browser gets them all
    names = {node: AGAIN if node == end else node for node in inside}
    for node, name in names.items():
        made = prompt.get_node(node)
        inputs = {key: _copied(value, names, graph.prefix) for key, value in made["inputs"].items()}
        copy = graph.node(made["class_type"], name, **inputs)
        copy.set_override_display_id(prompt.get_display_node_id(node))
    again = dataclasses.replace(run, lap=run.lap + 1)
    graph.lookup_node(start).set_input("run", again)
    return graph, graph.lookup_node(AGAIN).out(0)


def body(prompt: DynamicPrompt, start: str, end: str) -> set[str]:
    """The nodes that are repeated: those between the two, and what shows or saves something of them."""
    from nodes import NODE_CLASS_MAPPINGS

    graph = {node: prompt.get_node(node) for node in prompt.all_node_ids()}
    sources = {node: _sources(made["inputs"]) for node, made in graph.items()}
    users: dict[str, set[str]] = {}
    for node, found in sources.items():
        for source in found:
            users.setdefault(source, set()).add(node)
    after = _reach([start], users)
    outside = _reach([end], users) - {end}
    kinds = {node: NODE_CLASS_MAPPINGS[graph[node]["class_type"]] for node in after - outside}
    shown = {node for node, kind in kinds.items() if getattr(kind, "OUTPUT_NODE", False)}  # old nodes may lack it
    return after & _reach([end, *shown], sources)


def _sources(inputs: Mapping[str, Any]) -> set[str]:
    from comfy_execution.graph_utils import is_link

    return {value[0] for value in inputs.values() if is_link(value)}


def _reach(nodes: Iterable[str], along: Mapping[str, set[str]]) -> set[str]:
    """These nodes and all that can be reached from them."""
    found, waiting = set(nodes), list(nodes)
    while waiting:
        fresh = along.get(waiting.pop(), set()) - found
        found |= fresh
        waiting += fresh
    return found


def _copied(value: Any, names: Mapping[str, str], prefix: str) -> Any:  # noqa: ANN401
    """An input of a copy: links within the loop lead to the copies, all else stays."""
    from comfy_execution.graph_utils import is_link

    if is_link(value) and value[0] in names:
        return [prefix + names[value[0]], value[1]]
    return value
