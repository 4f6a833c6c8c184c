"""Load the pack as ComfyUI does at its start, and tell what that took: COMFYUI PACK.

The processor's time, which other programs do not lengthen; without a collection of the garbage that is ComfyUI's."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time


async def load(pack: str) -> dict:
    import server

    import nodes

    server.PromptServer(asyncio.get_running_loop())
    before = set(sys.modules)
    gc.disable()
    began = time.process_time()
    loaded = await nodes.load_custom_node(pack)
    seconds = time.process_time() - began
    kinds = [name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("CLVR")]
    return {"loaded": loaded, "seconds": seconds, "nodes": len(kinds), "modules": sorted(set(sys.modules) - before)}


def main(folder: str, pack: str) -> None:
    sys.path.insert(0, folder)
    sys.argv = ["main.py", "--cpu", "--disable-api-nodes"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import utils.extra_config  # noqa: F401  (before comfy/utils.py can be found under its name)

    print(json.dumps(asyncio.run(load(pack))))


if __name__ == "__main__":
    main(*sys.argv[1:])
