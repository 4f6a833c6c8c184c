"""Output linearity: what it measures on models of which the answer is known, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline
from safetensors.torch import load_file, save_file

from clvr.dswm.linearity import INPUTS, linearity
from clvr.dswm.recipe import Recipe, Source, Strength
from clvr.errors import ClvrError, SettingError, WeightsError

from . import dswm_fixtures as fx
from . import tiny_klein


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline's folder as base, and inputs for its transformer."""
    place = tmp_path_factory.mktemp("models")
    tiny_klein.make(place / "base")
    save_file(some_inputs(), place / "inputs.safetensors")
    return place


@pytest.fixture(scope="module")
def base(folder):
    return load_file(folder / "base/transformer/diffusion_pytorch_model.safetensors")


def some_inputs(count=2, tokens=4, length=6):
    generator = torch.Generator().manual_seed(0)
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(tokens // 2), torch.arange(1))
    text = torch.zeros(length, 4)
    text[:, 3] = torch.arange(length)
    return {
        "hidden_states": torch.randn(count, tokens, 128, generator=generator),
        "encoder_hidden_states": torch.randn(count, length, 3 * tiny_klein.HIDDEN, generator=generator),
        "timestep": torch.tensor([1.0, 0.5])[:count],
        "img_ids": grid.float(),
        "txt_ids": text,
    }


def measured(folder, tmp_path, distilled, aligned, strength=1.0, **options):
    options = {"inputs": folder / "inputs.safetensors", "device": "cpu", **options}
    files = [
        fx.write_bfl(tmp_path / f"{name}.safetensors", tensors, "fp32")
        for name, tensors in (("distilled", distilled), ("aligned", aligned))
    ]
    recipe = Recipe(
        tmp_path / "out",
        base=folder / "base",
        distilled=Source(files[0]),
        align=(Source(files[1], Strength(strength)),),
    )
    return linearity(recipe, **options)


def changed(base, names, seed, shift=0.05):
    """The base with increments in some tensors only."""
    return {name: tensor if name in names else base[name] for name, tensor in fx.moved(base, seed, shift).items()}


def test_increments_of_the_last_projection_add_up_exactly(folder, base, tmp_path):
    models = [changed(base, {"proj_out.weight"}, seed) for seed in (1, 2)]
    found = measured(folder, tmp_path, *models)
    assert found.total.merged > 1e-3 * found.total.base
    assert found.total.relative is not None
    assert found.total.relative < 1e-4


def test_the_residual_falls_with_the_square_of_the_increments(folder, base, tmp_path):
    residuals = []
    for shift in (0.1, 0.05, 0.025):
        found = measured(folder, tmp_path, fx.moved(base, 1, shift), fx.moved(base, 2, shift))
        residuals.append(found.total.residual)
        assert found.total.relative == pytest.approx(found.total.residual / found.total.merged)
    assert residuals[0] / residuals[1] == pytest.approx(4, rel=0.25)
    assert residuals[1] / residuals[2] == pytest.approx(4, rel=0.25)


def test_outputs_are_those_of_diffusers_own_models(folder, base, tmp_path):
    given = some_inputs()
    distilled, aligned = fx.moved(base, 1, 0.2), fx.moved(base, 2, 0.2)
    merged = {name: distilled[name] + 0.5 * (aligned[name] - base[name]) for name in base}
    half = {name: base[name] + 0.5 * (aligned[name] - base[name]) for name in base}
    outputs = []
    for tensors in (base, distilled, half, merged):
        model = tiny_klein.transformer()
        model.load_state_dict(tensors)
        with torch.no_grad():
            outputs.append(model(**given, guidance=None, return_dict=False)[0].double())
    b, d, a, m = outputs
    found = measured(folder, tmp_path, distilled, aligned, strength=0.5)
    assert found.total.residual == pytest.approx((m - d - a + b).norm().item(), rel=1e-3)
    assert found.total.aligned == pytest.approx((a - b).norm().item(), rel=1e-4)
    cosine = torch.cosine_similarity((d - b).flatten(), (a - b).flatten(), dim=0).item()
    assert found.total.cosine == pytest.approx(cosine, abs=1e-4)
    assert [row.sigma for row in found.rows] == [1.0, 0.5]
    first = (m - b)[0].norm().item()
    assert found.rows[0].merged == pytest.approx(first, rel=1e-4)


def test_equal_increments_have_a_cosine_of_one_and_none_has_none(folder, base, tmp_path):
    moved = fx.moved(base, 1, 0.02)
    assert measured(folder, tmp_path, moved, moved).total.cosine == pytest.approx(1)
    still = measured(folder, tmp_path, base, base)
    assert still.total.cosine is None
    assert still.total.relative is None
    assert still.text().splitlines()[4].split()[-2:] == ["-", "-"]
    json.dumps(still.json(), allow_nan=False)


def test_prompts_are_drawn_by_the_base_and_the_same_every_time(folder, base, tmp_path):
    models = fx.moved(base, 1), fx.moved(base, 2)
    options = {"inputs": None, "prompts": ("two red circles", "a dog"), "sigmas": (0.5, 1.0), "size": (64, 32)}
    found = measured(folder, tmp_path, *models, **options)
    assert [(row.sigma, row.inputs) for row in found.rows] == [(1.0, 2), (0.5, 2)]
    assert found == measured(folder, tmp_path, *models, **options)
    assert found != measured(folder, tmp_path, *models, **options, seed=1)
    text = found.text()
    assert "base + 1 distilled + 1 align 1" in text
    assert "4 inputs, float32 on cpu" in text
    assert max(map(len, text.splitlines())) <= 120


def test_noise_and_context_are_those_that_the_pipeline_draws_with(folder, base, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("clvr.dswm.linearity._trajectory", lambda network, start, sigmas: seen.append(start) or [start])
    measured(folder, tmp_path, base, base, inputs=None, prompts=("a red circle",), seed=3)
    pipeline = Flux2KleinPipeline.from_pretrained(folder / "base")
    calls = []
    pipeline.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs) or None, with_kwargs=True
    )
    pipeline(
        prompt="a red circle",
        height=64,
        width=64,
        num_inference_steps=1,
        guidance_scale=1.0,
        max_sequence_length=64,
        text_encoder_out_layers=tiny_klein.OUT_LAYERS,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    )
    (start,), call = seen, calls[0]
    assert torch.equal(start.hidden, call["hidden_states"])
    assert torch.allclose(start.text, call["encoder_hidden_states"], atol=1e-6)
    assert torch.equal(start.image_ids, call["img_ids"][0].float())
    assert torch.equal(start.text_ids, call["txt_ids"][0].float())
    assert start.sigma == float(call["timestep"][0])


def test_prompts_need_a_pipeline(base, tmp_path):
    files = [fx.write_bfl(tmp_path / f"{i}.safetensors", fx.moved(base, i), "fp32") for i in range(3)]
    recipe = Recipe(tmp_path / "out", base=files[0], distilled=Source(files[1]), align=(Source(files[2]),))
    with pytest.raises(SettingError, match=r"none of the models is a pipeline's folder.*model_index\.json"):
        linearity(recipe, prompts=("a dog",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ("a",)}, "one of the two"),
        ({"inputs": None}, "one of the two"),
        ({"inputs": None, "prompts": ("a",), "sigmas": (0.0,)}, "noise levels"),
        ({"inputs": None, "prompts": ("a",), "sigmas": ()}, "noise levels"),
        ({"inputs": None, "prompts": ("a",), "size": (60, 64)}, "multiples of 16"),
        ({"inputs": None, "prompts": ("a" * 600,)}, "more than 512 tokens"),
        ({"device": "abacus"}, "no device"),
        ({"dtype": "int8"}, "no number format"),
    ],
)
def test_settings_that_cannot_work_are_named(folder, base, tmp_path, options, message):
    with pytest.raises(SettingError, match=message):
        measured(folder, tmp_path, base, base, **options)


def test_all_four_models_are_needed(folder):
    with pytest.raises(SettingError, match="Give --base, --distilled and --align"):
        linearity(Recipe(Path("out"), distilled=Source(folder / "base")), prompts=("a",))


def spoil(name):
    good = some_inputs()
    cases = {
        "missing": {k: v for k, v in good.items() if k != "timestep"},
        "unknown": {**good, "mask": torch.zeros(1)},
        "channels": {**good, "hidden_states": torch.zeros(2, 4, 64)},
        "context": {**good, "encoder_hidden_states": torch.zeros(2, 6, 64)},
        "flat": {**good, "hidden_states": torch.zeros(4, 128)},
        "count": {**good, "timestep": torch.ones(3)},
        "ids": {**good, "img_ids": torch.zeros(5, 4)},
        "range": {**good, "timestep": torch.tensor([1000.0, 500.0])},
        "nan": {**good, "hidden_states": good["hidden_states"] * torch.nan},
        "empty": {**good, **{n: good[n][:0] for n in INPUTS[:3]}},
        "bool": {**good, "txt_ids": torch.zeros(6, 4, dtype=torch.bool)},
    }
    return {key: tensor.contiguous() for key, tensor in cases[name].items()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "lacks timestep"),
        ("unknown", "has 'mask'"),
        ("channels", "hidden_states is F32.*128"),
        ("context", "encoder_hidden_states is F32.*96"),
        ("flat", "hidden_states is F32"),
        ("count", "timestep is F32"),
        ("ids", "img_ids is F32"),
        ("range", "not between 0 and 1.*sigma"),
        ("nan", "NaN or Inf"),
        ("empty", "hidden_states is F32"),
        ("bool", "txt_ids is BOOL"),
    ],
)
def test_inputs_that_do_not_fit_are_named(folder, base, tmp_path, name, message):
    save_file(spoil(name), tmp_path / "spoilt.safetensors")
    with pytest.raises(WeightsError, match=message):
        measured(folder, tmp_path, base, base, inputs=tmp_path / "spoilt.safetensors")


def test_a_file_of_inputs_that_is_none_gives_a_plain_error(folder, base, tmp_path):
    (tmp_path / "inputs.safetensors").write_text("no tensors at all")
    for path in (tmp_path / "inputs.safetensors", tmp_path / "gone.safetensors"):
        with pytest.raises(ClvrError):
            measured(folder, tmp_path, base, base, inputs=path)


def test_a_config_of_another_model_is_named(folder, base, tmp_path):
    shutil.copytree(folder / "base", tmp_path / "base")
    config = tmp_path / "base/transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_single_layers": 3}))
    (tmp_path / "inputs.safetensors").write_bytes((folder / "inputs.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="config describes"):
        measured(tmp_path, tmp_path, base, base)
