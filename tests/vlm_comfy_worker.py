"""python vlm_comfy_worker.py COMFYUI FOLDER: a tiny Qwen3-VL as a CLIP of ComfyUI's own classes.

The pack's node makes a client of it. Runs in a process of its own: ComfyUI's top-level names and arguments stay
there. FOLDER is the model in transformers' layout. Reads requests and writes answers, a line of JSON each; ComfyUI's
own output goes to stderr."""

from __future__ import annotations

import base64
import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.merge_comfy_worker import start

IMAGE_PAD = 151655  # written into ComfyUI's tokenizer


class Interrupt(Exception):
    """What a test's `waiting` raises."""


def build(folder: Path) -> Any:
    """The folder's model as comfy.sd.CLIP."""
    import comfy.sd
    from comfy.text_encoders import qwen3vl
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    qwen3vl.QWEN3VL_CONFIGS["tiny"] = text_config(config["text_config"], folder)
    qwen3vl.QWEN3VL_VISION["tiny"] = {k: v for k, v in config["vision_config"].items() if isinstance(v, (int, list))}
    weights = load_file(folder / "model.safetensors")
    names = (("model.language_model.", "model."), ("model.visual.", "visual."), ("lm_head.", "model.lm_head."))
    renamed = {}
    for name, tensor in weights.items():
        old, new = next(pair for pair in names if name.startswith(pair[0]))
        renamed[new + name.removeprefix(old)] = tensor
    target = comfy.sd.ClipTarget() if hasattr(comfy.sd, "ClipTarget") else Target()
    target.clip, target.tokenizer, target.params = qwen3vl.te(model_type="tiny"), words(folder), {}
    return comfy.sd.CLIP(target, state_dict=[renamed])


class Target:
    params: dict[str, Any]
    clip: Any
    tokenizer: Any


def text_config(values: dict[str, Any], folder: Path) -> type:
    from comfy.text_encoders.llama import Qwen3VL_8BConfig

    rope = values["rope_parameters"]
    stop = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    known = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "rms_norm_eps")  # fmt: skip
    own = {k: values[k] for k in known} | {"rope_theta": rope["rope_theta"], "rope_dims": rope["mrope_section"]}

    class Tiny(Qwen3VL_8BConfig):
        def __init__(self, **other: Any) -> None:
            super().__init__(**other)
            vars(self).update(own, stop_tokens=[stop])

    return Tiny


def words(folder: Path) -> type:
    """ComfyUI's Qwen3-VL tokenizer over the folder's words."""
    from comfy import sd1_clip
    from comfy.text_encoders import qwen3vl
    from transformers import PreTrainedTokenizerFast

    class Words(PreTrainedTokenizerFast):
        def __call__(self, text: str) -> dict[str, list[int]]:
            ids = super().__call__(text, add_special_tokens=False)["input_ids"]
            pad = self.convert_tokens_to_ids("<|image_pad|>")
            return {"input_ids": [IMAGE_PAD if i == pad else i for i in ids]}

    class Part(sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                str(folder), 99999999, False, embedding_directory, 32, "tiny", Words,
                has_start_token=False, has_end_token=False, pad_to_max_length=False, min_length=1, pad_token=0,
            )  # fmt: skip

    class Tokenizer(qwen3vl.Qwen3VLTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            sd1_clip.SD1Tokenizer.__init__(self, embedding_directory, {}, name="tiny", tokenizer=Part)

    return Tokenizer


def chat(client: Any, request: dict[str, Any]) -> dict[str, Any]:
    from PIL import Image

    chat_module = importlib.import_module("pack.clvr.vlm.chat")
    errors = importlib.import_module("pack.clvr.errors")
    encoder = importlib.import_module("pack.clvr.vlm.encoder")
    client.settings = encoder.EncoderSettings(**request["settings"])
    looks = iter(range(1_000_000))

    def waiting() -> None:
        if next(looks) == request["interrupt_after"]:
            raise Interrupt

    client._waiting = waiting
    client._looked = 0.0

    def part(value: str | dict[str, str]) -> Any:
        return value if isinstance(value, str) else Image.open(io.BytesIO(base64.b64decode(value["png"])))

    talk = [chat_module.Message(role, tuple(part(p) for p in parts)) for role, parts in request["messages"]]
    try:
        reply = client.chat(talk)
    except Interrupt:
        return {"interrupted": True}
    except errors.ClvrError as error:
        return {"error": type(error).__name__, "thing": error.thing, "remedy": error.remedy}
    usage = [reply.usage.calls, reply.usage.tokens_in, reply.usage.tokens_out]
    return {"text": reply.text, "truncated": reply.truncated, "usage": usage}


def refusals(clip: Any) -> dict[str, str]:
    """What the node says to CLIPs that cannot plan."""
    import comfy.text_encoders.flux as flux
    import torch

    node = importlib.import_module("pack.nodes.vlm_clip")
    errors = importlib.import_module("pack.clvr.errors")
    blind = clip.clone()
    blind.tokenizer = flux.KleinTokenizer()
    eyeless = clip.clone()
    eyeless.cond_stage_model = torch.nn.Module()
    said = {}
    for name, wrong in (("klein tokenizer", blind), ("no vision", eyeless)):
        try:
            node.of(wrong, 8, 64)
        except errors.VLMSetupError as error:
            said[name] = str(error)
    return said


def main(comfy_folder: str, folder: str) -> None:
    out, sys.stdout = sys.stdout, sys.stderr
    start(comfy_folder)
    clip = build(Path(folder))
    client = importlib.import_module("pack.nodes.vlm_clip").of(clip, 8, 1024)
    for line in sys.stdin:
        request = json.loads(line)
        answer = refusals(clip) if request["op"] == "refusals" else chat(client, request)
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
