"""python memory_comfy_worker.py COMFYUI VLM KLEIN OUT: the pack's models and one of ComfyUI's on one small device.

The device is the CPU under another name, and how much is free on it is counted from what ComfyUI has put there. Writes
what happened to OUT. Runs in a process of its own: ComfyUI's top-level names and arguments stay there."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.merge_comfy_worker import start

CARD = "cpu:0"


class Lab:
    """A card, and who wants to be on it: a VLM, a model of ComfyUI's of the same size, a diffusers pipeline."""

    def __init__(self, vlm: str, klein: str) -> None:
        import comfy.model_management as management
        import comfy.model_patcher
        import torch

        self.management, self.torch = management, torch
        self.card = torch.device(CARD)
        self.memory = import_module("pack.nodes.memory")
        self.node = import_module("pack.nodes.vlm_transformers")
        self.local = import_module("pack.clvr.vlm.local")
        self.chat = import_module("pack.clvr.vlm.chat")
        self.klein = klein
        self.weights = self.node.Weights(self.local.load(vlm, torch.float32), self.card)
        self.size = self.weights.managed.patcher.model_size()
        other = torch.nn.ModuleList([torch.nn.Linear(self.size // 4, 1, bias=False)])
        self.other = comfy.model_patcher.ModelPatcher(other, self.card, torch.device("cpu"))
        self.total = 0.0
        management.get_free_memory = self.free
        management.minimum_inference_memory = management.extra_reserved_memory = lambda: 0
        management.soft_empty_cache = lambda *force: None

    def free(self, device: Any = None, torch_free_too: bool = False) -> Any:
        left = int(self.total - sum(m.model.loaded_size() for m in self.management.current_loaded_models))
        return (left, 0) if torch_free_too else left

    def begin(self, total: float) -> None:
        """An empty card that holds so many bytes."""
        self.total = total
        self.management.free_memory(1e30, self.card)
        self.told: list[dict[str, float]] = []

    def note(self) -> None:
        """Which share of whose weights is on the card, and the bytes that are free there."""
        names = {id(self.weights.managed.patcher): "VLM", id(self.other): "other"}
        there = {"VLM": 0.0, "other": 0.0, "pipeline": 0.0}
        for loaded in self.management.current_loaded_models:
            there[names.get(id(loaded.model), "pipeline")] = loaded.model.loaded_size() / loaded.model.model_size()
        self.told.append({**there, "free": self.free()})

    def client(self, always: bool = False, max_tokens: int = 4) -> Any:
        settings = self.local.LocalSettings(max_tokens=max_tokens)
        residence = self.node.Residence(self.weights.managed, always)
        return self.local.LocalClient(self.weights.qwen, residence, settings, lambda: None)

    def ask(self, client: Any, rounds: int = 1) -> tuple[str, int]:
        """What is answered after so many rounds, and how many tokens were read for it."""
        talk = [self.chat.Message("system", ("You plan.",)), self.chat.Message("user", ("A red cup.",))]
        for n in range(1, rounds):
            talk += [self.chat.Message("assistant", (f"Edit {n}.",)), self.chat.Message("user", ("And then?",))]
        before = self.weights.qwen.work.prefilled
        text = client.chat(talk).text
        return text, self.weights.qwen.work.prefilled - before

    def compute(self) -> None:
        self.management.load_models_gpu([self.other])

    # What is tried

    def turns(self, total: float, always: bool = False) -> dict[str, Any]:
        """The VLM and the other model take turns."""
        self.begin(total)
        client, answers = self.client(always), []
        for rounds in (1, 2):
            answers.append(self.ask(client, rounds))
            self.note()
            self.compute()
            self.note()
        return {"told": self.told, "answers": answers, "kept": client._prefixes.bytes}

    def crowded(self) -> list[dict[str, float]]:
        """Both models fit, but not what the VLM computes for a long answer."""
        self.begin(2.3 * self.size)
        self.compute()
        self.ask(self.client())
        self.note()
        longest = int(0.3 * self.size / self.weights.qwen.token_bytes)
        self.ask(self.client(max_tokens=longest))
        self.note()
        return self.told

    def pipeline(self) -> dict[str, Any]:
        """The VLM and a diffusers pipeline take turns on a card for one of them."""
        models = import_module("pack.clvr.models")
        context = import_module("pack.clvr.context").Context("a red circle", (), ())
        plain = models.load_generator(models.Choice(model=self.klein, device="cpu", steps=1))
        hosted = self.memory.HostedGenerator(plain, self.card, "none")
        alone = models.load_generator(models.Choice(model=self.klein, device="cpu", steps=1))
        self.memory.DRAWING = 0
        self.begin(hosted._managed.patcher.model_size() + self.size / 2)
        client, pictures = self.client(), []
        for rounds in (1, 2):
            self.ask(client, rounds)
            self.note()
            pictures.append(hosted.draw(context, (64, 64), [rounds]).images[0])
            self.note()
        same = [
            p.tobytes() == alone.draw(context, (64, 64), [n]).images[0].tobytes() for n, p in enumerate(pictures, 1)
        ]
        return {"told": self.told, "same": same, "kept": len(plain.pipeline._texts._values) > 0, **self.over(hosted)}

    def over(self, hosted: Any) -> dict[str, Any]:
        """The end of a run of single nodes, for who played in it."""
        sockets = import_module("pack.nodes.sockets")
        loop, trajectory = import_module("pack.clvr.loop"), import_module("pack.clvr.trajectory")
        ports = import_module("pack.clvr.ports")
        vlm = import_module("pack.clvr.vlm")
        client = self.client()
        self.ask(client)
        state = loop.State(trajectory.Trajectory(trajectory.Goal("a red cup")), ports.Album(), loop.Settings())
        run = sockets.Run(state).after(state, controller=sockets.Cast(vlm.VLMController(client)))
        run = run.after(state, generator=sockets.Cast(hosted))
        before = client._prefixes.bytes
        done = run.over()
        texts = hosted._generator.pipeline._texts._values
        return {"over": [before > 0, client._prefixes.bytes, len(texts), len(done.ports)]}


def main(comfy_folder: str, vlm: str, klein: str, out: str) -> None:
    start(comfy_folder)
    lab = Lab(vlm, klein)
    done = {
        "wide": lab.turns(10 * lab.size),
        "narrow": lab.turns(1.5 * lab.size),
        "always": lab.turns(10 * lab.size, always=True),
        "crowded": lab.crowded(),
        "pipeline": lab.pipeline(),
    }
    Path(out).write_text(json.dumps(done), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
