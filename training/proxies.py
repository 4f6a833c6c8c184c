"""Extract the proxy prompts of a dataset's steps by a VLM, before the training that needs them.

    python -m training.proxies --data DATASET --url http://localhost:8000 --model Qwen/Qwen3-VL-32B-Instruct

They are kept in DATASET/proxies: a second call asks only what is missing. The key of a hosted server is taken from
the environment variable CLVR_VLM_API_KEY.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from clvr.vlm import OpenAIClient

from .proxy import Cache, VLMTeacher, extract
from .tasks import tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a dataset of python -m training.data")
    parser.add_argument("--url", required=True, help="an OpenAI-compatible server")
    parser.add_argument("--model", help="the server's model; not needed where it has only one")
    parser.add_argument("--out", type=Path, help="where the proxies go (default: DATA/proxies)")
    options = parser.parse_args()
    teacher = VLMTeacher(OpenAIClient(options.url, options.model, os.environ.get("CLVR_VLM_API_KEY")))
    cache = Cache(options.out or options.data / "proxies", teacher.name)
    found = extract((task.context for task in tasks(options.data)), teacher, cache)
    failures = ", ".join(f"{count} {name}" for name, count in found.failed.items())
    print(f"{found.made} proxies made, {found.kept} kept, {found.failed.total()} failed {failures}".rstrip())
    if found.first:
        print(f"The first failure: {found.first}")


if __name__ == "__main__":
    main()
