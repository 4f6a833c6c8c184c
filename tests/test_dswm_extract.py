"""The increment as a LoRA: close to the best of its rank, exact where it can be, and read by ComfyUI and by us."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clvr.dswm.merge import merge
from clvr.dswm.recipe import Recipe, Source, Strength
from clvr.errors import SettingError, WeightsError
from clvr.flux2.keymap import to_bfl
from scripts.comfy import ComfyError, find

from . import dswm_fixtures as fx

BASE = fx.state(0)
MODULE = "double_blocks.0.img_attn.proj"
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def decaying(base, seed, power):
    """The base with increments whose singular values fall as i^-power."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, weights in base.items():
        noise = torch.randn(weights.shape, generator=generator)
        if noise.ndim == 2:
            u, s, v = torch.linalg.svd(noise, full_matrices=False)
            noise = (u * torch.arange(1, len(s) + 1.0) ** -power) @ v
        found[name] = weights + 0.02 * noise
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = {"base": BASE, "distilled": fx.moved(BASE, 1), "align": decaying(BASE, 2, 0.5)}
    return {name: fx.write_bfl(folder / f"{name}.safetensors", model, "fp32") for name, model in models.items()}


def low_rank(path, rank=4, values=None, dtype=torch.float32):
    """A ComfyUI LoRA on two modules of different blocks; values: its singular values."""
    generator = torch.Generator().manual_seed(3)
    shapes = {name: t.shape for name, t in to_bfl(BASE).items()}
    tensors = {}
    for module in (MODULE, "single_blocks.1.linear1"):
        height, width = shapes[f"{module}.weight"]
        left = torch.linalg.qr(torch.randn(height, rank, generator=generator)).Q
        right = torch.linalg.qr(torch.randn(width, rank, generator=generator)).Q
        scale = torch.ones(rank) if values is None else torch.tensor(values)
        tensors[f"diffusion_model.{module}.lora_B.weight"] = (left * scale).to(dtype).contiguous()
        tensors[f"diffusion_model.{module}.lora_A.weight"] = right.mT.to(dtype).contiguous()
    save_file(tensors, path)
    return path


def extract(files, out, distilled: float | None = 1.0, align: Path | None = None, listen=lambda _: None, **options):
    """Merge the fixture's files into a LoRA; returns the outcome."""
    recipe = Recipe(
        out,
        base=options.pop("base", files["base"]),
        distilled=None if distilled is None else Source(files["distilled"], Strength(distilled)),
        align=options.pop("aligns", (Source(align or files["align"]),)),
        form="lora",
        **{"dtype": "fp32", "threads": 2, **options},
    )
    return merge(recipe, listen)


def products(path):
    """ΔW by BFL key, fp64."""
    tensors = load_file(path)
    found = {}
    for name, tensor in tensors.items():
        module = name.removeprefix("diffusion_model.")
        if module.endswith(".diff"):
            found[f"{module.removesuffix('.diff')}.scale"] = tensor.double()
        elif module.endswith(".lora_B.weight"):
            down = tensors[name.replace("lora_B", "lora_A")].double()
            found[f"{module.removesuffix('.lora_B.weight')}.weight"] = tensor.double() @ down
    return found


def difference(files, **strengths):
    """Σ λ (model - base) by BFL key, fp64."""
    models = {name: load_file(path) for name, path in files.items()}
    return {
        name: sum(s * (models[k][name].double() - base.double()) for k, s in strengths.items())
        for name, base in models["base"].items()
    }


def distance(one, other):
    """‖one - other‖ / ‖other‖ over all tensors."""
    assert one.keys() == other.keys()
    error = sum((one[name] - other[name]).square().sum() for name in other)
    return (error / sum(t.square().sum() for t in other.values())).sqrt().item()


@pytest.mark.parametrize(("rank", "align"), [(1, "noise"), (16, "noise"), (8, "decaying"), (64, "decaying")])
def test_the_retained_energy_is_within_a_hundredth_of_the_best(files, tmp_path, rank, align):
    relative = "base" if align == "noise" else "distilled"
    outcome = extract(files, tmp_path / "lora.safetensors", rank=rank, relative_to=relative)
    wanted = difference(files, align=1.0, **({"distilled": 1.0} if relative == "base" else {}))
    found = products(outcome.path)
    total = sum(t.square().sum().item() for t in wanted.values())
    best = sum(
        t.square().sum().item() if t.ndim == 1 else torch.linalg.svdvals(t)[:rank].square().sum().item()
        for t in wanted.values()
    )
    assert 0.99 * best <= outcome.energy * total <= best * (1 + 1e-6)
    assert distance(found, wanted) ** 2 == pytest.approx(1 - outcome.energy, abs=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), ("fp16", 1e-3), ("bf16", 5e-3)])
def test_an_increment_of_no_higher_rank_is_kept_exactly(files, tmp_path, dtype, tolerance):
    lora = low_rank(tmp_path / "align.safetensors")
    outcome = extract(
        files, tmp_path / "out.safetensors", base=None, align=lora, rank=4, relative_to="distilled", dtype=dtype
    )
    assert outcome.energy == pytest.approx(1, abs=1e-6)
    assert distance(products(outcome.path), products(lora)) < tolerance
    assert {t.dtype for t in load_file(outcome.path).values()} == {TYPES[dtype]}


def test_weak_directions_of_a_low_rank_increment_are_kept(files, tmp_path):
    lora = low_rank(tmp_path / "align.safetensors", values=[1.0, 1e-1, 1e-3, 1e-4])
    outcome = extract(files, tmp_path / "out.safetensors", base=None, align=lora, rank=4, relative_to="distilled")
    for name, wanted in products(lora).items():
        found = torch.linalg.svdvals(products(outcome.path)[name])[:4]
        torch.testing.assert_close(found, torch.linalg.svdvals(wanted)[:4], rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("relative_to", "distilled", "wanted"),
    [
        ("base", 1.0, {"distilled": 1.0, "align": 0.5}),
        ("distilled", 1.0, {"align": 0.5}),
        ("base", 0.7, {"distilled": 0.7, "align": 0.5}),
        ("distilled", 0.7, {"distilled": -0.3, "align": 0.5}),
        ("base", None, {"align": 0.5}),
    ],
)
def test_at_full_rank_the_lora_is_what_the_merge_adds(files, tmp_path, relative_to, distilled, wanted):
    aligns = (Source(files["align"], Strength(0.5)),)
    outcome = extract(files, tmp_path / "lora.safetensors", distilled, aligns=aligns, rank=999, relative_to=relative_to)
    assert outcome.energy == pytest.approx(1, abs=1e-6)
    assert distance(products(outcome.path), difference(files, **wanted)) < 1e-5


def test_strengths_by_block_count_and_untouched_blocks_are_left_out(files, tmp_path):
    aligns = (Source(files["align"], Strength(0.0, {"single.1": 2.0})),)
    outcome = extract(files, tmp_path / "lora.safetensors", aligns=aligns, rank=999, relative_to="distilled")
    wanted = {k: t for k, t in difference(files, align=2.0).items() if k.startswith("single_blocks.1.")}
    assert distance(products(outcome.path), wanted) < 1e-5


def test_a_lora_added_again_gives_the_merged_model_within_the_stated_energy(files, tmp_path):
    outcome = extract(files, tmp_path / "lora.safetensors", rank=8, relative_to="distilled")
    again = Recipe(
        tmp_path / "again.safetensors",
        distilled=Source(files["distilled"]),
        align=(Source(outcome.path),),
        dtype="fp32",
    )
    merged = {name: t.double() for name, t in load_file(merge(again).path).items()}
    models = {name: load_file(path) for name, path in files.items()}
    added = {name: t - models["distilled"][name].double() for name, t in merged.items()}
    wanted = difference(files, align=1.0)
    assert 0.3 < outcome.energy < 0.99
    assert distance(added, wanted) ** 2 == pytest.approx(1 - outcome.energy, abs=1e-4)


def test_the_layout_of_the_inputs_does_not_matter(files, tmp_path):
    folder = fx.write_folder(tmp_path / "base", BASE, torch.float32)
    one = extract(files, tmp_path / "one.safetensors", rank=8)
    two = extract(files, tmp_path / "two.safetensors", rank=8, base=folder)
    assert two.energy == one.energy
    found, wanted = load_file(two.path), load_file(one.path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_file_is_the_same_every_time_and_with_any_number_of_threads(files, tmp_path, monkeypatch):
    monkeypatch.setattr("clvr.dswm.extract.RUN", 4096)
    outs = [
        extract(files, tmp_path / f"{i}.safetensors", rank=8, threads=threads).path
        for i, threads in enumerate((1, 3, 3))
    ]
    contents = [out.read_bytes() for out in outs]
    assert contents[0] == contents[1] == contents[2]


def test_progress_is_told_in_the_callers_thread_and_ends_whole(files, tmp_path, monkeypatch):
    monkeypatch.setattr("clvr.dswm.extract._TELL", 0.0)
    told = []
    outcome = extract(
        files,
        tmp_path / "lora.safetensors",
        rank=8,
        listen=lambda p: told.append((threading.get_ident(), p.tensors_done, p.bytes_done, p.tensors)),
    )
    threads, done, written, counts = zip(*told, strict=True)
    assert set(threads) == {threading.get_ident()}
    assert len(set(done)) > 10
    assert all(a <= b for a, b in itertools.pairwise(done))
    assert all(a <= b for a, b in itertools.pairwise(written))
    assert done[-1] == counts[-1] == len(load_file(outcome.path))


def test_an_interrupt_leaves_nothing_behind(files, tmp_path, monkeypatch):
    monkeypatch.setattr("clvr.dswm.extract._TELL", 0.0)

    def stop(progress):
        if progress.tensors_done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(files, tmp_path / "lora.safetensors", listen=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank 0"),
        ({"base": None, "relative_to": "base"}, "base, which is not given.*--base"),
        ({"distilled": None, "relative_to": "distilled"}, "distilled model, which is not given.*--distilled"),
        ({"aligns": (), "relative_to": "distilled"}, "Nothing is added to the distilled model"),
    ],
)
def test_settings_that_cannot_work_are_named(files, tmp_path, options, message):
    align = low_rank(tmp_path / "align.safetensors")
    with pytest.raises(SettingError, match=message):
        extract(files, tmp_path / "lora.safetensors", align=align, **options)
    assert not (tmp_path / "lora.safetensors").exists()


def test_nan_is_refused_by_the_tensors_name(files, tmp_path):
    spoilt = load_file(files["align"])
    spoilt[f"{MODULE}.weight"][3, 5] = torch.nan
    save_file(spoilt, tmp_path / "spoilt.safetensors")
    with pytest.raises(WeightsError, match=rf"{MODULE}.*NaN"):
        extract(files, tmp_path / "lora.safetensors", align=tmp_path / "spoilt.safetensors")
    assert not (tmp_path / "lora.safetensors").exists()


def test_nan_of_a_norm_is_refused_too(files, tmp_path):
    spoilt = load_file(files["align"])
    spoilt["single_blocks.0.norm.key_norm.scale"][5] = torch.inf
    save_file(spoilt, tmp_path / "spoilt.safetensors")
    with pytest.raises(WeightsError, match=r"single_blocks\.0\.norm\.key_norm"):
        extract(files, tmp_path / "lora.safetensors", align=tmp_path / "spoilt.safetensors")


@pytest.mark.comfy
def test_comfyui_applies_every_key(files, tmp_path):
    try:
        comfy = find()
    except ComfyError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"NO COMFYUI: {error}")
    lora = extract(files, tmp_path / "lora.safetensors", rank=999, relative_to="distilled").path
    worker = Path(__file__).parent / "adapters_comfy_worker.py"
    command = [sys.executable, worker, comfy, files["distilled"], tmp_path / "out.safetensors", lora]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    found = {name.removeprefix("0/"): t.double() for name, t in load_file(tmp_path / "out.safetensors").items()}
    wanted = difference(files, align=1.0)
    ignored = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("0 ")]
    if ignored:  # ComfyUI before klein: its norms hold .scale
        norms = {name: t for name, t in wanted.items() if t.ndim == 1}
        assert sorted(ignored) == sorted(f"diffusion_model.{n.removesuffix('.scale')}.diff" for n in norms)
        wanted = {name: t for name, t in wanted.items() if name not in norms}
    found = {name.replace("_norm.weight", "_norm.scale"): t for name, t in found.items()}
    assert distance(found, wanted) < 1e-4
