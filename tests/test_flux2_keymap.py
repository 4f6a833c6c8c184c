"""The key map is a bijection, for any width and depth, and says which keys it does not know."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from clvr.errors import MissingFileError, RunFolderError, WeightsError
from clvr.flux2 import headers
from clvr.flux2.export import export, main
from clvr.flux2.keymap import BFL_PREFIXES, RULES, layout, to_bfl, to_diffusers

from . import tiny_klein


def diffusers_shapes(h, head, context, double, single, guidance):
    embed = "time_guidance_embed"
    yield "x_embedder.weight", (h, 128)
    yield "context_embedder.weight", (h, context)
    for name in ("timestep", "guidance") if guidance else ("timestep",):
        yield f"{embed}.{name}_embedder.linear_1.weight", (h, 256)
        yield f"{embed}.{name}_embedder.linear_2.weight", (h, h)
    for name, rows in [("double_stream_modulation_img", 6), ("double_stream_modulation_txt", 6)]:
        yield f"{name}.linear.weight", (rows * h, h)
    yield "single_stream_modulation.linear.weight", (3 * h, h)
    yield "norm_out.linear.weight", (2 * h, h)
    yield "proj_out.weight", (128, h)
    for i in range(double):
        block = f"transformer_blocks.{i}"
        names = [f"to_{c}" for c in "qkv"] + [f"add_{c}_proj" for c in "qkv"] + ["to_out.0", "to_add_out"]
        yield from ((f"{block}.attn.{n}.weight", (h, h)) for n in names)
        yield from ((f"{block}.attn.norm_{n}.weight", (head,)) for n in ("q", "k", "added_q", "added_k"))
        for n in ("ff", "ff_context"):
            yield f"{block}.{n}.linear_in.weight", (6 * h, h)
            yield f"{block}.{n}.linear_out.weight", (h, 3 * h)
    for i in range(single):
        block = f"single_transformer_blocks.{i}.attn"
        yield f"{block}.to_qkv_mlp_proj.weight", (9 * h, h)
        yield f"{block}.to_out.weight", (h, 4 * h)
        yield from ((f"{block}.norm_{n}.weight", (head,)) for n in "qk")


def tensors_of(shapes):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes}


models = st.builds(
    lambda h, head, context, double, single, guidance: tensors_of(
        diffusers_shapes(h, head, context, double, single, guidance)
    ),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 12),
    st.integers(0, 12),
    st.booleans(),
)


def assert_equal(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[k], other[k]) for k in one)


@given(models, st.sampled_from(BFL_PREFIXES), st.booleans())
@settings(max_examples=40)
def test_the_round_trip_is_the_identity(model, prefix, weight_norms):
    twin = to_bfl(model)
    named = {prefix + (k.replace(".scale", ".weight") if weight_norms else k): t for k, t in twin.items()}
    assert_equal(to_diffusers(named), model)
    assert_equal(to_bfl(to_diffusers(twin)), twin)
    assert sum(t.numel() for t in twin.values()) == sum(t.numel() for t in model.values())


@given(models, st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_order_does_not_matter(model, random):
    names = random.sample(sorted(model), len(model))
    assert_equal(to_bfl({n: model[n] for n in names}), to_bfl(model))


@given(st.text(max_size=40))
def test_a_key_is_used_or_named(key):
    known = {k.replace("#", "0") for rule in RULES for k in (rule.bfl, *rule.diffusers)}
    if key in known:
        return
    for convert in (to_bfl, to_diffusers):
        with pytest.raises(WeightsError) as caught:
            convert({key: torch.zeros(6, 2)})
        assert key in caught.value.thing


def test_real_models_have_no_other_keys():
    model = tiny_klein.transformer(double=2, single=3, heads=2).state_dict()
    assert_equal(to_diffusers(to_bfl(model)), model)
    shapes = dict(diffusers_shapes(256, 128, 96, 2, 3, guidance=False))
    assert shapes == {k: tuple(t.shape) for k, t in model.items()}


def test_shift_and_scale_of_the_last_layer_change_places():
    both = torch.arange(4.0).reshape(4, 1)
    twin = to_bfl({"norm_out.linear.weight": both})
    assert twin["final_layer.adaLN_modulation.1.weight"].flatten().tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize(
    ("convert", "shapes", "message"),
    [
        (
            to_bfl,
            {"transformer_blocks.0.attn.to_q.weight": (2, 2)},
            r"without .*\.to_k\.weight, .*\.to_v\.weight",
        ),
        (
            to_bfl,
            {f"transformer_blocks.0.attn.to_{c}.weight": (2 + (c == "k"), 2) for c in "qkv"},
            r"differ in shape.*\(2, 2\), \(3, 2\)",
        ),
        (to_bfl, {"norm_out.linear.weight": (3, 2)}, "two halves"),
        (
            to_bfl,
            {"x_embedder.weight": (2, 2), "transformer.x_embedder.weight": (2, 2)},
            "no place for transformer",
        ),
        (to_diffusers, {"double_blocks.0.img_attn.qkv.weight": (4, 2)}, "3 blocks of rows"),
        (to_diffusers, {"double_blocks.0.img_attn.qkv.weight": ()}, "3 blocks of rows"),
        (to_diffusers, {"final_layer.adaLN_modulation.1.weight": ()}, "two halves"),
        (
            to_diffusers,
            {"img_in.weight": (2, 2), "img_in.weight_scale": ()},
            r"no place for img_in\.weight_scale",
        ),
        (to_diffusers, {"double_blocks.00.img_attn.proj.weight": (2, 2)}, r"no place for double_blocks\.00"),
    ],
)
def test_faults_are_named(convert, shapes, message):
    with pytest.raises(WeightsError, match=message):
        convert({k: torch.zeros(shape) for k, shape in shapes.items()})


def test_many_unknown_keys_are_counted():
    with pytest.raises(WeightsError, match="and 12 more"):
        to_bfl({f"lora.{i}": torch.zeros(1) for i in range(20)})


def test_the_layout_is_recognised():
    model = tiny_klein.transformer().state_dict()
    assert layout(model) == "diffusers"
    assert layout(to_bfl(model)) == "bfl"
    assert layout(f"model.diffusion_model.{k}" for k in to_bfl(model)) == "bfl"
    with pytest.raises(WeightsError, match="not those of a FLUX"):
        layout(["unet.conv.weight"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_klein.make(tmp_path_factory.mktemp("klein"))


def test_export_writes_the_bf16_twin(folder, tmp_path, monkeypatch):
    out = tmp_path / "new" / "twin.safetensors"
    monkeypatch.setattr("sys.argv", ["export", str(folder), str(out)])
    main()
    assert {e.dtype for e in headers.read(out).tensors.values()} == {"BF16"}
    model = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert_equal(to_diffusers(load_file(out)), {k: t.bfloat16() for k, t in model.items()})
    with pytest.raises(RunFolderError, match="already there"):
        export(folder, out)


def test_export_fails_with_an_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["export", str(tmp_path / "none"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert "There is no folder" in capsys.readouterr().err


def test_export_into_an_impossible_place_leaves_nothing(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="Cannot write"):
        export(folder, tmp_path / "file" / "twin.safetensors")
    with pytest.raises(MissingFileError):
        export(tmp_path / "none", tmp_path / "twin.safetensors")
