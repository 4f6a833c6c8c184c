"""What a merge costs: against the floor of its reads and writes, mergekit, and a merge that loads everything.

    python -m benchmarks.merge                                  FLUX.2 4B's shapes, as deep as memory and disk allow
    python -m benchmarks.merge --gigabytes 1.4 --mergekit PYTHON --json FILE
    python -m benchmarks.merge --quick                          tiny files, seconds

Makes three random bf16 files (a base, and two models 2.8 % and 2.3 % from it) and runs every way in processes of
their own, one after the other, each round in the reverse order of the one before. Seconds are of the work without
the imports; memory is the peak beyond what the imports took (Linux). The floor reads the inputs once and writes
as many bytes as the output has, with fsync, serially through one buffer; mergekit and the merge that loads
everything leave their output to be written back later. PYTHON is one that can import mergekit."""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clvr.dswm.merge import merge
from clvr.dswm.recipe import Recipe, Source
from clvr.dswm.writing import TensorFile

ROOT = Path(__file__).resolve().parents[1]
SHIFTS = {"distilled": 0.028, "aligned": 0.023}
"""Relative shift (eq. 7) of the two increments."""
INPUTS = ("base", *SHIFTS)
AIMS = {("report", "floor"): 1.3, ("plain", "floor"): 1.3, ("report", "plain"): 1.15, ("report", "mergekit"): 0.4}
MEMORY = 256e6
WIDTH, DOUBLE, SINGLE, CONTEXT, HEAD, CHANNELS, TIME = 3072, 5, 20, 7680, 128, 128, 256
RUN, BLOCK, SKEW = 1 << 24, 1 << 18, 64
"""Weights made at once; bytes of the floor's buffer, and where in a page it begins: reading into a large bytearray,
which begins at byte 16 of one, takes four times as long on some AMD cores."""

MERGEKIT = """
import json, sys, time
from pathlib import Path
import torch, safetensors.torch, transformers
from mergekit.scripts.merge_raw_pytorch import main

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

imports, began = memory("VmRSS"), time.perf_counter()
main(sys.argv[1:], standalone_mode=False)
print(json.dumps({"seconds": time.perf_counter() - began, "memory": memory("VmHWM") - imports}))
"""


@dataclass(frozen=True)
class Cost:
    """memory: bytes at the peak beyond the imports."""

    seconds: float
    memory: int


def shapes(width: int, double: int, single: int) -> dict[str, tuple[int, ...]]:
    """A FLUX.2 transformer's tensors in BFL's layout."""
    h, context = width, CONTEXT * width // WIDTH
    found: dict[str, tuple[int, ...]] = {"img_in.weight": (h, CHANNELS), "txt_in.weight": (h, context)}
    found |= {"time_in.in_layer.weight": (h, TIME), "time_in.out_layer.weight": (h, h)}
    found |= {f"double_stream_modulation_{kind}.lin.weight": (6 * h, h) for kind in ("img", "txt")}
    found["single_stream_modulation.lin.weight"] = (3 * h, h)
    for i in range(double):
        for kind in (f"double_blocks.{i}.img", f"double_blocks.{i}.txt"):
            found |= {f"{kind}_attn.qkv.weight": (3 * h, h), f"{kind}_attn.proj.weight": (h, h)}
            found |= {f"{kind}_attn.norm.{part}_norm.scale": (HEAD,) for part in ("query", "key")}
            found |= {f"{kind}_mlp.0.weight": (6 * h, h), f"{kind}_mlp.2.weight": (h, 3 * h)}
    for i in range(single):
        block = f"single_blocks.{i}"
        found |= {f"{block}.linear1.weight": (9 * h, h), f"{block}.linear2.weight": (h, 4 * h)}
        found |= {f"{block}.norm.{part}_norm.scale": (HEAD,) for part in ("query", "key")}
    return found | {"final_layer.linear.weight": (CHANNELS, h), "final_layer.adaLN_modulation.1.weight": (2 * h, h)}


def size(width: int, double: int, single: int) -> int:
    """Bytes of the tensors in bf16."""
    return sum(2 * torch.Size(shape).numel() for shape in shapes(width, double, single).values())


def depth(width: int, wanted: float) -> tuple[int, int]:
    """Numbers of double and single blocks, one to four where it can be, that come near `wanted` bytes."""
    rest = size(width, 0, 0)
    one, other = size(width, 1, 0) - rest, size(width, 0, 1) - rest
    double = min(DOUBLE, max(1, round((wanted - rest) / (one + 4 * other))))
    return double, min(SINGLE, max(1, round((wanted - rest - double * one) / other)))


def at_hand(disk: Path) -> float:
    """Bytes of a file such that inputs and output stay in memory beside the merge that loads everything."""
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(memory / 10, shutil.disk_usage(disk).free / 6)


def make_inputs(folder: Path, tensors: Mapping[str, tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    described = {name: ("BF16", shape) for name, shape in tensors.items()}
    files = {name: TensorFile(folder / f"{name}.safetensors", described, {"format": "pt"}) for name in INPUTS}
    noise = torch.empty(RUN)
    for name, shape in tensors.items():
        count = torch.Size(shape).numel()
        for start in range(0, count, RUN):
            weights = torch.randn(min(RUN, count - start)).mul_(0.02).bfloat16()
            for kind, file in files.items():
                shifted = weights
                if kind in SHIFTS:
                    shifted = noise[: len(weights)].normal_(std=0.02 * SHIFTS[kind]).add_(weights).bfloat16()
                file.write(file.offsets[name] + 2 * start, shifted.view(torch.uint8).numpy().data)
    for file in files.values():
        file.finish({"format": "pt"})


def differing(folder: Path, out: Path) -> int:
    """Elements of the output that are not those of base + Σ (other - base) in fp32, rounded once."""
    count = 0
    with safe_open(out, "pt") as merged, contextlib.ExitStack() as stack:
        inputs = [stack.enter_context(safe_open(folder / f"{name}.safetensors", "pt")) for name in INPUTS]
        assert set(merged.keys()) == set(inputs[0].keys())
        for name in merged.keys():  # noqa: SIM118
            base, *others = (file.get_tensor(name).float() for file in inputs)
            expected = base.clone()
            for other in others:
                expected += other.sub_(base)
            written = merged.get_tensor(name)
            count += int((written.view(torch.int16) != expected.bfloat16().view(torch.int16)).count_nonzero())
    return count


def merge_ours(folder: Path, out: Path, threads: int | None, diagnose: bool) -> None:
    base, distilled, aligned = (folder / f"{name}.safetensors" for name in INPUTS)
    merge(Recipe(out, base, Source(distilled), (Source(aligned),), diagnose=diagnose, threads=threads))


def read_and_write(folder: Path, out: Path) -> None:
    """The floor: every input's bytes once, and as many as one of them has written and flushed to disk."""
    buffer = memoryview(mmap.mmap(-1, BLOCK + SKEW, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))[SKEW:]
    with contextlib.ExitStack() as stack:
        inputs = [stack.enter_context(open(folder / f"{name}.safetensors", "rb", buffering=0)) for name in INPUTS]
        written = stack.enter_context(open(out, "wb", buffering=0))
        while all(got := [file.readinto(buffer) for file in inputs]):
            written.write(buffer[: got[0]])
        os.fsync(written.fileno())


def load_everything(folder: Path, out: Path) -> None:
    base, *others = (load_file(folder / f"{name}.safetensors") for name in INPUTS)
    merged = {}
    for name, tensor in base.items():
        weights = tensor.float()
        merged[name] = (weights + sum(other[name].float() - weights for other in others)).bfloat16()
    save_file(merged, out)


def work(way: str, folder: Path, threads: int | None) -> None:
    """Run one way in this process and print its cost."""
    out = folder / "merged.safetensors"
    if threads:
        torch.set_num_threads(threads)
    ways: dict[str, Callable[[], None]] = {
        "report": lambda: merge_ours(folder, out, threads, True),
        "plain": lambda: merge_ours(folder, out, threads, False),
        "floor": lambda: read_and_write(folder, out),
        "load": lambda: load_everything(folder, out),
    }
    imports, began = memory("VmRSS"), perf_counter()
    ways[way]()
    print(json.dumps({"seconds": perf_counter() - began, "memory": memory("VmHWM") - imports}))


def memory(field: str) -> int:
    """Bytes of this process: VmRSS, or VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def command(way: str, folder: Path, options: argparse.Namespace) -> list[str]:
    threads = [] if options.threads is None else ["--threads", str(options.threads)]
    if way != "mergekit":
        return [sys.executable, "-m", "benchmarks.merge", "--work", way, "--disk", str(folder), *threads]
    files = [str(folder / f"{name}.safetensors") for name in INPUTS]
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": files[0],
        "models": [{"model": file, "parameters": {"weight": 1.0}} for file in files[1:]],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    (folder / "mergekit.yaml").write_text(json.dumps(recipe))
    told = [str(folder / "mergekit.yaml"), str(folder / "mergekit"), "--quiet", "--no-write-model-card"]
    return [options.mergekit, "-c", MERGEKIT, *told, *threads]


def run(way: str, folder: Path, options: argparse.Namespace) -> Cost:
    done = subprocess.run(command(way, folder, options), capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def clear(folder: Path) -> None:
    """Remove what a way wrote, and wait until nothing of it is on its way to the disk."""
    (folder / "merged.safetensors").unlink(missing_ok=True)
    shutil.rmtree(folder / "mergekit", ignore_errors=True)
    os.sync()


def measure(folder: Path, ways: Sequence[str], options: argparse.Namespace) -> tuple[list[dict[str, Cost]], int]:
    """The rounds after one that is thrown away, and how many elements of ours were wrong in the first."""
    rounds, wrong = [], 0
    for i in range(options.pairs + (not options.quick)):
        costs = {}
        for way in ways[:: -1 if i % 2 else 1]:
            costs[way] = run(way, folder, options)
            if i == 0 and way in ("report", "plain"):
                wrong += differing(folder, folder / "merged.safetensors")
            clear(folder)
        rounds.append({way: costs[way] for way in ways})
        told = "  ".join(f"{way} {costs[way].seconds:.2f}" for way in ways)
        print(f"round {i}   {told}", file=sys.stderr, flush=True)
    return rounds[-options.pairs :], wrong


def ratios(rounds: Sequence[Mapping[str, Cost]], way: str, other: str) -> list[float]:
    return [costs[way].seconds / costs[other].seconds for costs in rounds]


def show(rounds: Sequence[Mapping[str, Cost]], wrong: int) -> None:
    names = {
        "report": "clvr merge, with the report",
        "plain": "clvr merge, plain",
        "floor": "floor: read, write, fsync",
        "mergekit": "mergekit task_arithmetic",
        "load": "load everything",
    }
    print("| | seconds | / floor (min–max) | peak beyond imports |\n| --- | --- | --- | --- |")
    for way in rounds[0]:
        seconds = statistics.median(costs[way].seconds for costs in rounds)
        peak = max(costs[way].memory for costs in rounds) / 1e6
        print(f"| {names[way]} | {seconds:.2f} | {spread(ratios(rounds, way, 'floor'))} | {peak:,.0f} MB |")
    print()
    for (way, other), aim in AIMS.items():
        if other in rounds[0]:
            print(f"{names[way]} / {names[other]}: {spread(ratios(rounds, way, other))}, aim {aim}")
    peak = max(costs["report"].memory for costs in rounds) / 1e6
    print(f"peak beyond imports: {peak:.0f} MB, aim {MEMORY / 1e6:.0f} MB")
    print(f"elements that differ from the fp32 reference: {wrong}")


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--double", type=int, help="double blocks; as many as --gigabytes say when not given")
    parser.add_argument("--single", type=int, help="single blocks")
    parser.add_argument("--gigabytes", type=float, help="of one file")
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="folder for the files")
    parser.add_argument("--pairs", type=int, default=7, help="rounds")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--mergekit", metavar="PYTHON", help="a Python that can import mergekit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's cost there")
    parser.add_argument("--quick", action="store_true", help="tiny files, one round: does it work?")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.disk, options.threads)
        return
    if options.quick:
        options.width, options.double, options.single, options.pairs = 128, 1, 2, 1
    wanted = options.gigabytes * 1e9 if options.gigabytes else at_hand(options.disk)
    double, single = depth(options.width, wanted)
    model = options.width, options.double or double, options.single or single
    ways = ["report", "plain", "floor", *(["mergekit"] if options.mergekit else []), "load"]
    print(f"width {model[0]}, {model[1]} + {model[2]} blocks: 3 inputs of {size(*model) / 1e9:.2f} GB, bf16")
    with tempfile.TemporaryDirectory(prefix="clvr-merge-", dir=options.disk) as folder:
        make_inputs(Path(folder), shapes(*model))
        rounds, wrong = measure(Path(folder), ways, options)
    show(rounds, wrong)
    if options.json:
        found = [{way: asdict(cost) for way, cost in costs.items()} for costs in rounds]
        options.json.write_text(json.dumps({"model": model, "differing": wrong, "rounds": found}, indent=2) + "\n")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
