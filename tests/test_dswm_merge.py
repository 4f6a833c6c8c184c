"""The merge is exact, streams, and says what it kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clvr.dswm import writing
from clvr.dswm.arithmetic import NUMBERS
from clvr.dswm.merge import merge
from clvr.dswm.plan import infer_config, open_plan
from clvr.dswm.recipe import Recipe, Source, Strength
from clvr.dswm.sums import Sums
from clvr.errors import ClvrError, OutputError, SettingError, WeightsError
from clvr.flux2 import folder as klein
from clvr.flux2 import headers
from clvr.flux2.keymap import to_bfl, to_diffusers

from . import tiny_klein
from .dswm_fixtures import moved, reference, rounded, state, write_bfl, write_folder

NAMES = ("base", "distilled", "sft", "rl")


@pytest.fixture(scope="module")
def models():
    base = state(double=2, single=2)
    return dict(zip(NAMES, [base, moved(base, 1), moved(base, 2), moved(base, 3, 0.004)], strict=True))


@pytest.fixture(scope="module")
def files(models, tmp_path_factory):
    """Every model in every form: file[name][form]."""
    root = tmp_path_factory.mktemp("merge")
    made = {}
    for name, tensors in models.items():
        made[name] = {
            "bfl": write_bfl(root / name / "bfl.safetensors", tensors),
            "comfyui": write_bfl(root / name / "c.safetensors", tensors, prefix="model.diffusion_model."),
            "folder": write_folder(root / name / "folder", tensors),
            "shards": write_folder(root / name / "shards", tensors, max_shard_size="1MB"),
        }
        assert len(list((root / name / "shards").glob("*.safetensors"))) > 1
    return made


@pytest.fixture(scope="module")
def lora(models, tmp_path_factory):
    """A LoRA on two fused modules, and its dense increment in the BFL layout."""
    generator = torch.Generator().manual_seed(9)
    twin = to_bfl(models["base"])
    tensors, dense = {}, {name: torch.zeros_like(t) for name, t in twin.items()}
    for module in ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear1"):
        rows, columns = twin[f"{module}.weight"].shape
        a, b = (0.02 * torch.randn(s, generator=generator) for s in ((4, columns), (rows, 4)))
        tensors |= {f"diffusion_model.{module}.lora_A.weight": a, f"diffusion_model.{module}.lora_B.weight": b}
        dense[f"{module}.weight"] = b @ a
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save_file(tensors, path)
    return path, dense


def differing(path: Path, wanted: dict[str, torch.Tensor]) -> int:
    found = load_file(path)
    assert set(found) == set(wanted)
    return sum(int((found[name] != wanted[name]).sum()) for name in wanted)


def recipe(files, out, forms=("bfl", "bfl", "bfl", "bfl"), strengths=None, **options):
    strengths = strengths or [Strength()] * 3
    paths = [files[name][form] for name, form in zip(NAMES, forms, strict=True)]
    aligned = tuple(Source(path, s) for path, s in zip(paths[2:], strengths[1:], strict=True))
    return Recipe(out, paths[0], Source(paths[1], strengths[0]), aligned, **options)


def bf16_models(models):
    return [rounded(models[name]) for name in NAMES]


@given(
    st.tuples(*[st.sampled_from(["bfl", "comfyui", "folder", "shards"])] * 4),
    st.tuples(*[st.sampled_from([1.0, 0.0, 0.5, -0.3, 1.7, 1 / 3])] * 3),
    st.sampled_from(["bf16", "fp16", "fp32"]),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_no_element_differs_from_the_fp32_reference(models, files, tmp_path_factory, forms, numbers, dtype, diagnose):
    out = tmp_path_factory.mktemp("out") / "out.safetensors"
    strengths = [Strength(number) for number in numbers]
    merge(recipe(files, out, forms, strengths, dtype=dtype, diagnose=diagnose))
    wanted = reference(*bf16_models(models), strengths=numbers, dtype=dtype)
    assert differing(out, to_bfl(wanted)) == 0


def test_the_result_does_not_depend_on_how_the_work_is_cut(models, files, tmp_path, monkeypatch):
    monkeypatch.setattr("clvr.dswm.streaming.RUN", 1000)
    monkeypatch.setattr("clvr.dswm.streaming.TASK", 4096)
    strengths = [Strength(0.7), Strength(1 / 3), Strength(1.3)]
    merge(recipe(files, tmp_path / "out", strengths=strengths, threads=3))
    wanted = reference(*bf16_models(models), strengths=[s.value for s in strengths])
    assert differing(tmp_path / "out", to_bfl(wanted)) == 0


def test_strengths_of_blocks_count_in_their_blocks_alone(models, files, tmp_path):
    strengths = [Strength(), Strength(1.0, {"double": 0.0, "double.1": 0.5, "final": 2.0}), Strength(0.0)]
    merge(recipe(files, tmp_path / "out", strengths=strengths))
    found = load_file(tmp_path / "out")
    base, distilled, sft, _ = bf16_models(models)
    for key, number in {
        "double_blocks.0.img_attn.qkv.weight": 0.0,
        "double_blocks.1.txt_mlp.0.weight": 0.5,
        "single_blocks.1.linear2.weight": 1.0,
        "double_stream_modulation_img.lin.weight": 1.0,
        "final_layer.adaLN_modulation.1.weight": 2.0,
    }.items():
        wanted = to_bfl(reference(base, distilled, sft, strengths=(1.0, number)))
        assert torch.equal(found[key], wanted[key]), key


def test_a_diffusers_folder_comes_out_and_diffusers_loads_it(models, files, tmp_path):
    merge(recipe(files, tmp_path / "out", form="diffusers"))
    model = Flux2Transformer2DModel.from_pretrained(tmp_path / "out", torch_dtype=torch.bfloat16)
    wanted = reference(*bf16_models(models))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_layers"] == 2


def test_a_config_inferred_from_bfl_files_makes_the_same_model(models, files, tmp_path):
    inferred = infer_config(open_plan(recipe(files, tmp_path / "out")).shapes)
    wanted = dict(tiny_klein.transformer(2, 2).config)
    assert {k: v for k, v in inferred.items() if k != "_class_name"} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in wanted.items() if k in inferred
    }


def test_a_pipeline_stays_a_pipeline_and_draws(tmp_path):
    folders = [tiny_klein.make(tmp_path / name, seed, distilled=name == "d") for seed, name in enumerate("bda")]
    (folders[1] / "text_encoder" / "old.bin").write_bytes(b"pickle")
    out = tmp_path / "out"
    options = {"form": "diffusers", "dtype": "fp32"}
    merge(Recipe(out, folders[0], Source(folders[1]), (Source(folders[2], Strength(0.5)),), **options))
    found = klein.inspect(out)
    assert found.distilled
    assert found.sampling == klein.inspect(folders[1]).sampling
    assert not list(out.rglob("*.bin"))
    pipe = Flux2KleinPipeline.from_pretrained(out)
    parts = [Flux2Transformer2DModel.from_pretrained(f, subfolder="transformer").state_dict() for f in folders]
    wanted = reference(*parts, strengths=(1.0, 0.5), dtype="fp32")
    assert all(torch.equal(t, wanted[name]) for name, t in pipe.transformer.state_dict().items())


def test_both_output_forms_are_the_same_model(models, files, tmp_path):
    merge(recipe(files, tmp_path / "bfl"))
    merge(recipe(files, tmp_path / "folder", form="diffusers"))
    other = load_file(tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    twin = to_diffusers(load_file(tmp_path / "bfl"))
    assert set(twin) == set(other)
    assert all(torch.equal(twin[name], other[name]) for name in twin)


def test_a_lora_needs_no_base_and_a_base_changes_nothing(models, files, lora, tmp_path):
    path, dense = lora
    aligned = (Source(path, Strength(0.5)),)
    distilled = Source(files["distilled"]["bfl"])
    without = merge(Recipe(tmp_path / "a", None, distilled, aligned))
    given = merge(Recipe(tmp_path / "b", files["base"]["folder"], distilled, aligned))
    wanted = {k: (t.float() + 0.5 * dense[k]).bfloat16() for k, t in to_bfl(rounded(models["distilled"])).items()}
    assert differing(tmp_path / "a", wanted) == 0
    assert differing(tmp_path / "b", wanted) == 0
    assert (without.reference, without.increments) == ("distilled", ("align 1",))
    assert (given.reference, given.increments) == ("base", ("distilled", "align 1"))


def test_a_lora_sits_on_a_fine_tune(models, files, lora, tmp_path):
    path, dense = lora
    aligned = (Source(files["sft"]["shards"]), Source(path))
    merge(Recipe(tmp_path / "out", files["base"]["bfl"], Source(files["distilled"]["bfl"]), aligned, dtype="fp32"))
    base, distilled, sft, _ = (to_bfl(m) for m in bf16_models(models))
    for name, found in load_file(tmp_path / "out").items():
        wanted = base[name].float() + (distilled[name].float() - base[name].float())
        wanted = wanted + (sft[name].float() - base[name].float()) + dense[name]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_without_a_distilled_model_the_increments_go_onto_the_base(models, files, tmp_path):
    merge(Recipe(tmp_path / "out", files["base"]["bfl"], None, (Source(files["sft"]["bfl"]),)))
    base, _, sft, _ = bf16_models(models)
    wanted = {k: (t.float() + (sft[k].float() - t.float())).bfloat16() for k, t in base.items()}
    assert differing(tmp_path / "out", to_bfl(wanted)) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f, o, x: Recipe(o), "Nothing to merge"),
        (lambda f, o, x: Recipe(o, None, Source(f["distilled"]["bfl"]), (Source(f["sft"]["bfl"]),)), "base is missing"),
        (
            lambda f, o, x: Recipe(o, None, Source(f["distilled"]["bfl"], Strength(0.5)), (Source(x),)),
            "not added whole",
        ),
        (lambda f, o, x: Recipe(o, None, Source(x), ()), "base that it changes is not named"),
        (lambda f, o, x: recipe(f, o, strengths=[Strength(1, {"double.7": 1.0}), *[Strength()] * 2]), "has not"),
    ],
)
def test_recipes_that_cannot_be_carried_out_say_why(files, lora, tmp_path, make, message):
    with pytest.raises(SettingError, match=message):
        merge(make(files, tmp_path / "out", lora[0]))
    assert not list(tmp_path.iterdir())


def test_what_is_measured_is_what_the_weights_say(models, files, tmp_path):
    outcome = merge(recipe(files, tmp_path / "out", strengths=[Strength(), Strength(0.5), Strength()], conflicts=True))
    base, *others = [to_bfl(m) for m in bf16_models(models)]
    deltas = [{k: other[k].double() - base[k].double() for k in base} for other in others]
    total = Sums.total(list(outcome.blocks.values()))
    energies = [sum(float((d[k] ** 2).sum()) for k in base) for d in deltas]
    assert total.elements == sum(t.numel() for t in base.values())
    assert total.energy == pytest.approx(sum(float((t.double() ** 2).sum()) for t in base.values()), rel=1e-5)
    assert [total.dots[k][k] for k in range(3)] == pytest.approx(energies, rel=1e-5)
    product = sum(float((deltas[0][k] * deltas[1][k]).sum()) for k in base)
    assert total.dots[0][1] == total.dots[1][0] == pytest.approx(product, rel=1e-3, abs=1e-3 * energies[0])
    both = sum(int(((deltas[0][k] != 0) & (deltas[1][k] != 0)).sum()) for k in base)
    opposed = sum(int((deltas[0][k] * deltas[1][k] < 0).sum()) for k in base)
    assert (total.both[0][1], total.conflicts[0][1]) == (both, opposed)
    assert total.chance[0][1] / both == pytest.approx(0.5, abs=0.02)


def test_the_rounding_is_measured_against_the_file_without_the_increment(models, files, tmp_path, monkeypatch):
    monkeypatch.setattr("clvr.dswm.streaming.SAMPLED_WHOLE", 1 << 30)
    outcome = merge(recipe(files, tmp_path / "out", strengths=[Strength(), Strength(0.0), Strength()]))
    base, distilled, _, rl = [to_bfl(m) for m in bf16_models(models)]
    kept = asked = unchanged = touched = 0.0
    for name, weights in base.items():
        delta = rl[name].float() - weights.float()
        exact = weights.float() + (distilled[name].float() - weights.float()) + delta
        moved_by = (exact.bfloat16().float() - (exact - delta).bfloat16().float()).double()
        kept += float((moved_by * delta).sum())
        asked += float((delta.double() ** 2).sum())
        touched += int((delta != 0).sum())
        unchanged += int(((delta != 0) & (moved_by == 0)).sum())
    total = Sums.total(list(outcome.blocks.values()))
    assert total.kept[2] / total.asked[2] == pytest.approx(kept / asked, rel=1e-4)
    assert (total.unchanged[2], total.touched[2]) == (unchanged, touched)
    assert total.touched[1] == 0


def test_a_small_increment_is_lost_in_bf16_and_kept_in_fp32(models, tmp_path):
    """facts: at a shift of 1e-3 a bf16 file keeps about half of the increment."""
    base = rounded(models["base"])
    paths = [write_bfl(tmp_path / "b", base), write_bfl(tmp_path / "d", moved(base, 1, 0.0))]
    aligned = write_bfl(tmp_path / "a", moved({k: t.float() for k, t in base.items()}, 2, 1e-3), "fp32")
    shares = {}
    for dtype in ("bf16", "fp32"):
        blocks = merge(Recipe(tmp_path / dtype, paths[0], Source(paths[1]), (Source(aligned),), dtype=dtype)).blocks
        total = Sums.total(list(blocks.values()))
        shares[dtype] = total.kept[1] / total.asked[1]
    assert 0.3 < shares["bf16"] < 0.8
    assert shares["fp32"] == pytest.approx(1, abs=1e-3)


def test_the_header_records_what_was_merged(files, tmp_path):
    strengths = [Strength(), Strength(0.5, {"double": 0.25}), Strength()]
    forms = ("bfl", "folder", "shards", "comfyui")
    outcome = merge(recipe(files, tmp_path / "out.safetensors", forms, strengths, sha256=True))
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["clvr_merge"])
    assert metadata["format"] == "pt"
    assert [i["name"] for i in record["inputs"]] == ["base", "distilled", "align 1", "align 2"]
    assert record["inputs"][2]["lambda"] == "0.5,double=0.25"
    digest = subprocess.run(["sha256sum", files["base"]["bfl"]], capture_output=True, text=True, check=True).stdout
    assert record["inputs"][0]["sha256"] == outcome.inputs[0].digest == digest.split()[0]
    assert len(outcome.inputs[2].files) > 1
    assert str(tmp_path) not in metadata["clvr_merge"]


def test_a_fingerprint_tells_models_apart_and_copies_not(models, files, tmp_path):
    names = [write_bfl(tmp_path / f"{i}.safetensors", models[name]) for i, name in enumerate(("sft", "sft", "rl"))]
    sources = files["base"]["bfl"], Source(files["distilled"]["bfl"])
    found = [merge(Recipe(tmp_path / f"out{i}", *sources, (Source(path),))) for i, path in enumerate(names)]
    digests = [outcome.inputs[2].digest for outcome in found]
    assert digests[0] == digests[1] != digests[2]
    record = json.loads(headers.read(tmp_path / "out0").metadata["clvr_merge"])
    assert record["inputs"][2]["fingerprint"] == digests[0]


@pytest.mark.parametrize("diagnose", [True, False])
def test_nan_is_refused_by_name_unless_it_is_allowed(models, files, tmp_path, diagnose):
    broken = {k: t.clone() for k, t in models["sft"].items()}
    broken["proj_out.weight"][3, 4:6] = torch.nan
    path = write_bfl(tmp_path / "nan.safetensors", broken)
    base, distilled = files["base"]["bfl"], Source(files["distilled"]["bfl"])
    options = {"diagnose": diagnose}
    with pytest.raises(WeightsError, match=r"final_layer.linear.weight of the align 1 model .*nan.* 2 NaN"):
        merge(Recipe(tmp_path / "out", base, distilled, (Source(path),), **options))
    assert [p.name for p in tmp_path.iterdir()] == ["nan.safetensors"]
    outcome = merge(Recipe(tmp_path / "out", base, distilled, (Source(path),), allow_nonfinite=True, **options))
    assert int(load_file(tmp_path / "out")["final_layer.linear.weight"].isnan().sum()) == 2
    if diagnose:
        assert outcome.blocks["final"].nonfinite == [0, 0, 2, 2]


def test_weights_too_large_for_fp16_are_refused(models, files, tmp_path):
    large = {k: t.clone() for k, t in models["sft"].items()}
    large["proj_out.weight"][0, 0] = 1e6
    path = write_bfl(tmp_path / "large.safetensors", large)
    sources = files["base"]["bfl"], Source(files["distilled"]["bfl"]), (Source(path),)
    with pytest.raises(WeightsError, match=r"1 weights of final_layer.linear.weight do not fit into fp16"):
        merge(Recipe(tmp_path / "out", *sources, dtype="fp16"))


def test_the_listener_sees_progress_and_can_end_the_merge(files, tmp_path):
    told = []
    merge(recipe(files, tmp_path / "out"), told.append)
    assert [p.bytes_done for p in told] == sorted(p.bytes_done for p in told)
    assert (told[-1].tensors_done, told[-1].bytes_done) == (told[-1].tensors, (tmp_path / "out").stat().st_size)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(recipe(files, tmp_path / "new" / "folder" / "other"), stop)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("link", ["same", "symlink", "hardlink"])
@pytest.mark.parametrize("role", ["base", "distilled", "rl"])
def test_an_output_that_is_an_input_is_refused(models, files, tmp_path, link, role):
    out = tmp_path / "out.safetensors"
    if link == "symlink":
        out.symlink_to(files[role]["bfl"])
    elif link == "hardlink":
        out.hardlink_to(files[role]["bfl"])
    else:
        out = files[role]["bfl"]
    before = files[role]["bfl"].read_bytes()
    with pytest.raises(OutputError, match=rf"is an input \({'align 2' if role == 'rl' else role}\)"):
        merge(recipe(files, out, overwrite=True))
    assert files[role]["bfl"].read_bytes() == before


def test_an_output_folder_that_holds_an_input_is_refused(files):
    with pytest.raises(OutputError, match="is an input"):
        merge(recipe(files, files["sft"]["folder"], ("bfl", "bfl", "folder", "bfl"), form="diffusers", overwrite=True))


def test_what_is_there_is_replaced_only_on_request(files, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_text("old")
    with pytest.raises(OutputError, match=r"already there.*--overwrite"):
        merge(recipe(files, out))
    assert out.read_text() == "old"
    merge(recipe(files, out, overwrite=True))
    assert len(load_file(out)) > 20


def test_only_a_merge_s_own_folder_is_replaced(files, tmp_path):
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "holiday.jpg").write_text("dear")
    with pytest.raises(OutputError, match="no merge wrote"):
        merge(recipe(files, mine, form="diffusers", overwrite=True))
    with pytest.raises(OutputError, match="is a folder"):
        merge(recipe(files, mine, overwrite=True))
    assert (mine / "holiday.jpg").read_text() == "dear"
    merge(recipe(files, tmp_path / "model", form="diffusers"))
    merge(recipe(files, tmp_path / "model", form="diffusers", overwrite=True, dtype="fp32"))
    assert (
        load_file(tmp_path / "model" / "diffusion_pytorch_model.safetensors")["proj_out.weight"].dtype == torch.float32
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "photos"]


def test_too_little_space_is_foreseen(files, tmp_path, monkeypatch):
    usage = writing.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"will take .* GB.*Free some space"):
        merge(recipe(files, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


FULL = """
import resource, signal, sys
from pathlib import Path
from clvr.dswm.merge import merge
from clvr.dswm.recipe import Recipe, Source
from clvr.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    merge(Recipe(Path(sys.argv[3]), Path(sys.argv[1]), Source(Path(sys.argv[2]))))
except OutputError as error:
    print(error)
"""


def test_space_that_runs_out_all_the_same_is_an_error_and_leaves_nothing(files, tmp_path):
    told = subprocess.run(
        [sys.executable, "-c", FULL, files["base"]["bfl"], files["distilled"]["bfl"], tmp_path / "out"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Cannot write" in told.stdout
    assert not list(tmp_path.iterdir())


def test_an_input_that_changes_meanwhile_is_noticed(models, tmp_path):
    paths = [write_bfl(tmp_path / name, models[name]) for name in ("base", "distilled")]

    def touch(_):
        with open(paths[1], "rb+") as file:
            file.seek(-1, 2)
            file.write(b"\x00")

    with pytest.raises(WeightsError, match="distilled was changed while it was merged"):
        merge(Recipe(tmp_path / "out", paths[0], Source(paths[1])), touch)
    assert not (tmp_path / "out").exists()


PEAK = """
import resource, sys
from pathlib import Path
import torch
from clvr.dswm.merge import merge
from clvr.dswm.recipe import Recipe, Source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge(Recipe(Path(sys.argv[4]), Path(sys.argv[1]), Source(Path(sys.argv[2])), (Source(Path(sys.argv[3])),), threads=4))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path):
    """Three inputs of 330 MB; all in fp32 at once would be 2 GB."""
    base = {k: t.bfloat16() for k, t in tiny_klein.transformer(1, 10, 8).state_dict().items()}
    paths = [write_bfl(tmp_path / f"{name}.safetensors", base) for name in "bda"]
    assert paths[0].stat().st_size > 3e8
    told = subprocess.run(
        [sys.executable, "-c", PEAK, *paths, tmp_path / "out"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(told.stdout) < 256


@given(st.binary(min_size=1, max_size=60), st.integers(0, 400), st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_input_gives_an_error_that_names_it_and_touches_nothing(files, tmp_path_factory, junk, place, data):
    folder = tmp_path_factory.mktemp("hostile")
    content = bytearray(files["sft"]["bfl"].read_bytes())
    match data.draw(st.sampled_from(["overwrite", "cut", "length", "append", "insert"])):
        case "overwrite":
            content[place : place + len(junk)] = junk
        case "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        case "length":
            content[:8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
        case "append":
            content += junk
        case _:
            content[place:place] = junk
    hostile = folder / "hostile.safetensors"
    hostile.write_bytes(content)
    told = attempt(Recipe(folder / "out", files["base"]["bfl"], Source(hostile)))
    if told:
        assert "hostile.safetensors" in told
        assert [p.name for p in folder.iterdir()] == ["hostile.safetensors"]
    else:
        assert len(load_file(folder / "out")) == len(load_file(files["base"]["bfl"]))


def attempt(wanted):
    """The error's message; '' where the merge went well."""
    try:
        merge(wanted)
    except ClvrError as error:
        return str(error)
    return ""


def test_dtypes_are_named_as_safetensors_does(files, tmp_path):
    for dtype, kind in NUMBERS.items():
        merge(recipe(files, tmp_path / dtype, dtype=dtype))
        assert {t.dtype for t in load_file(tmp_path / dtype).values()} == {kind}
