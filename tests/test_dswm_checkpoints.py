"""Checkpoints of every form are read; quantised, incomplete and foreign ones are refused by name."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from clvr.dswm.checkpoints import open_checkpoint, same_model
from clvr.dswm.plan import open_plan, read_rows
from clvr.dswm.recipe import Recipe, Source
from clvr.errors import MissingFileError, WeightsError
from clvr.flux2.keymap import pieces, to_bfl

from .dswm_fixtures import state, write_bfl, write_folder

LAYER = "double_blocks.0.img_attn.qkv"


@pytest.fixture(scope="module")
def model():
    return state()


@pytest.fixture(scope="module")
def twin(model):
    return {name: t.bfloat16().contiguous() for name, t in to_bfl(model).items()}


def save(path, tensors, **metadata):
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata=metadata or None)
    return path


def weights(checkpoint):
    return {piece: read_rows(run) for piece, run in checkpoint.runs.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[piece], other[piece]) for piece in one)


def test_every_form_gives_the_same_pieces(model, twin, tmp_path):
    plain = open_checkpoint(save(tmp_path / "bfl.safetensors", twin))
    wanted = weights(plain)
    assert plain.format == "BFL file, bf16"
    for prefix in ("diffusion_model.", "model.diffusion_model."):
        named = {prefix + k.replace("_norm.scale", "_norm.weight"): t for k, t in twin.items()}
        assert_same(weights(open_checkpoint(save(tmp_path / "named.safetensors", named))), wanted)
    folder = open_checkpoint(write_folder(tmp_path / "folder", model))
    assert (folder.form, folder.format) == ("diffusers", "diffusers folder, bf16")
    assert_same(weights(folder), wanted)
    shards = open_checkpoint(write_folder(tmp_path / "shards", model, max_shard_size="500KB"))
    assert "shards" in shards.format
    assert_same(weights(shards), wanted)
    single = open_checkpoint(folder.files[0].path)
    assert single.format == "diffusers file, bf16"
    assert_same(weights(single), wanted)


def test_a_pipeline_folder_is_its_transformer(model, tmp_path):
    write_folder(tmp_path / "klein" / "transformer", model)
    (tmp_path / "klein" / "model_index.json").write_text("{}")
    for path in (tmp_path / "klein", tmp_path / "klein" / "transformer"):
        assert open_checkpoint(path).pipeline == tmp_path / "klein"


def test_pieces_are_read_by_rows(twin, tmp_path):
    checkpoint = open_checkpoint(save(tmp_path / "m.safetensors", twin))
    for i, piece in enumerate(pieces(f"{LAYER}.weight", "bfl")):
        wanted = twin[f"{LAYER}.weight"].chunk(3)[i].float()
        assert torch.equal(read_rows(checkpoint.runs[piece], 5, 9), wanted[5:9])


def quantised(twin, old):
    """The model with one fp8_scaled layer, in ComfyUI's old or new form, and what it stands for."""
    scale = torch.tensor(0.003)
    codes = (twin[f"{LAYER}.weight"].float() / scale).to(torch.float8_e4m3fn)
    tensors = {**twin, f"{LAYER}.weight": codes}
    if old:
        tensors |= {f"{LAYER}.scale_weight": scale, f"{LAYER}.scale_input": torch.ones(())}
        tensors |= {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    else:
        note = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
        tensors |= {f"{LAYER}.weight_scale": scale, f"{LAYER}.comfy_quant": note, f"{LAYER}.input_scale": scale.clone()}
    return tensors, codes.float() * scale


@pytest.mark.parametrize("old", [True, False])
def test_fp8_scaled_is_dequantised(twin, tmp_path, old):
    tensors, wanted = quantised(twin, old)
    checkpoint = open_checkpoint(save(tmp_path / "m.safetensors", tensors), role="distilled")
    assert "f8_e4m3" in checkpoint.format
    assert "scaled" in checkpoint.format
    for i, piece in enumerate(pieces(f"{LAYER}.weight", "bfl")):
        assert torch.equal(read_rows(checkpoint.runs[piece]), wanted.chunk(3)[i])


def test_fp8_is_no_base_and_needs_scales_unless_it_is_allowed(twin, tmp_path):
    scaled = save(tmp_path / "scaled.safetensors", quantised(twin, True)[0])
    raw = save(tmp_path / "raw.safetensors", {**twin, f"{LAYER}.weight": twin[f"{LAYER}.weight"].to(torch.float8_e5m2)})
    with pytest.raises(WeightsError, match=r"base .*scaled.* is fp8 .*--allow-fp8"):
        open_checkpoint(scaled, role="base")
    with pytest.raises(WeightsError, match=rf"fp8 without scales \({LAYER}"):
        open_checkpoint(raw, role="distilled")
    for path in (scaled, raw):
        open_checkpoint(path, allow_fp8=True, role="base")


def note(kind):
    return torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{LAYER}.weight_scale_2": torch.ones(())}, rf"format nvfp4 \(layer {LAYER}"),
        ({f"{LAYER}.comfy_quant": note("nvfp4")}, rf"format nvfp4 \(layer {LAYER}"),
        ({f"{LAYER}.comfy_quant": note("mxfp8")}, rf"format mxfp8 \(layer {LAYER}"),
        ({f"{LAYER}.comfy_quant": torch.tensor([1, 2, 3], dtype=torch.uint8)}, "unknown format"),
        ({f"{LAYER}.weight_scale": torch.ones(4, dtype=torch.float8_e8m0fnu)}, "format mxfp8"),
        ({f"{LAYER}.weight_scale": torch.ones(384, 1)}, r"scale of shape \(384, 1\)"),
        ({f"{LAYER}.weight_scale": torch.tensor(float("nan"))}, "scale .* is nan"),
        ({f"{LAYER}.weight": torch.ones(384, 128, dtype=torch.int8)}, rf"format int8 \(layer {LAYER}"),
        ({f"{LAYER}.weight": torch.ones(384, 64, dtype=torch.uint8)}, "format 4-bit"),
        ({f"{LAYER}.weight.absmax": torch.ones(4)}, "format bitsandbytes"),
        ({f"{LAYER}.weight._data": torch.ones(4)}, "format quanto"),
        ({f"{LAYER}.qweight": torch.ones(4)}, "GPTQ"),
        ({"nothing.weight_scale": torch.ones(())}, "no place for nothing.weight_scale"),
        ({"double_blocks.0.img_attn.qkv.bias": torch.ones(4)}, r"no place for .*qkv\.bias"),
        ({"first_stage_model.conv.weight": torch.ones(4)}, "all-in-one"),
        ({f"{LAYER}.weight": torch.ones(385, 128)}, "3 blocks of rows"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(twin, tmp_path, change, message):
    path = save(tmp_path / "odd.safetensors", {**twin, **change})
    with pytest.raises(WeightsError, match=rf"odd\.safetensors.*({message})"):
        open_checkpoint(path)


@pytest.mark.parametrize("text", ['{"layers": {"a": {"format": "svdquant"}}}', "[", '{"layers": 3}'])
def test_formats_declared_in_the_header_are_refused(twin, tmp_path, text):
    path = save(tmp_path / "m.safetensors", twin, _quantization_metadata=text)
    with pytest.raises(WeightsError, match=r"format svdquant \(layer a\)|no known way"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "gone", ["img_in.weight", "double_blocks.0.txt_mlp.2.weight", "single_blocks.0.linear1.weight"]
)
def test_a_missing_tensor_is_named(twin, tmp_path, gone):
    path = save(tmp_path / "m.safetensors", {k: t for k, t in twin.items() if k != gone})
    with pytest.raises(WeightsError, match="lacks 1 pieces"):
        open_checkpoint(path)


def test_a_missing_projection_of_a_diffusers_file_is_named(model, tmp_path):
    gone = "transformer_blocks.0.attn.to_k.weight"
    path = save(tmp_path / "m.safetensors", {k: t for k, t in model.items() if k != gone})
    with pytest.raises(WeightsError, match=rf"lacks 1 pieces .*{gone}"):
        open_checkpoint(path)


def test_models_of_two_sizes_are_told_apart(model, twin, tmp_path):
    small = open_checkpoint(save(tmp_path / "small.safetensors", twin))
    large = open_checkpoint(write_bfl(tmp_path / "large.safetensors", state(double=2, single=3)))
    with pytest.raises(WeightsError, match=r"align 1 model .* with 2 \+ 3 blocks.* base model is .* 1 \+ 2 blocks"):
        same_model(small.shapes, large, ("base", "align 1"))


def test_shapes_that_differ_are_named(twin, tmp_path):
    one = open_checkpoint(save(tmp_path / "one.safetensors", twin))
    other = {**twin, "txt_in.weight": torch.ones(96, 128), "img_in.weight": twin["img_in.weight"]}
    two = open_checkpoint(save(tmp_path / "two.safetensors", other))
    with pytest.raises(WeightsError, match=r"txt_in\.weight \(96, 128\) instead of \(128, 96\)"):
        same_model(one.shapes, two, ("base", "distilled"))


def test_files_of_other_kinds_are_refused_by_name(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "diffusion_pytorch_model.bin").write_bytes(b"")
    save(tmp_path / "vae.safetensors", {"decoder.conv.weight": torch.ones(2)})
    for name, message in {
        "model.ckpt": "pickle",
        "model.gguf": "format GGUF",
        "folder": "a pickle",
        "vae.safetensors": "not those of a FLUX.2",
    }.items():
        with pytest.raises(WeightsError, match=message):
            open_checkpoint(tmp_path / name)
    with pytest.raises(MissingFileError, match=r"no .*nowhere"):
        open_checkpoint(tmp_path / "nowhere")


def test_a_gguf_is_recognised_under_any_name(twin, tmp_path):
    base = save(tmp_path / "base.safetensors", twin)
    (tmp_path / "model.safetensors").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(WeightsError, match="format GGUF"):
        open_plan(Recipe(tmp_path / "out", base, Source(tmp_path / "model.safetensors")))


def test_a_quantised_folder_is_refused_by_its_method(model, tmp_path):
    folder = write_folder(tmp_path / "q", model)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(WeightsError, match="'torchao'"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: dict.fromkeys(names, "../evil.safetensors"), "no file of its folder"),
        (lambda names: dict.fromkeys(names, "/etc/passwd"), "no file of its folder"),
        (lambda names: {**names, "extra.weight": next(iter(names.values()))}, "does not agree .*'extra.weight'"),
        (lambda names: dict(list(names.items())[1:]), "does not agree"),
    ],
)
def test_an_index_of_shards_is_not_believed(model, tmp_path, change, message):
    folder = write_folder(tmp_path / "shards", model, max_shard_size="500KB")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    data = json.loads(index.read_text())
    index.write_text(json.dumps({**data, "weight_map": change(data["weight_map"])}))
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(folder)


HOSTILE = {
    "twice": b'{"img_in.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"img_in.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "overlap": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}',
    "beyond": b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
    "negative": b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    "huge": b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}',
    "dtype": b'{"a":{"dtype":"PICKLE","shape":[1],"data_offsets":[0,4]}}',
    "deep": b"[" * 100_000,
    "nan": b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}',
    "not a map": b'{"a":[1,2,3]}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_errors(tmp_path, name):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(struct.pack("<Q", len(HOSTILE[name])) + HOSTILE[name] + bytes(4))
    with pytest.raises(WeightsError, match=r"hostile\.safetensors"):
        open_checkpoint(path)


def test_what_is_read_is_what_safetensors_reads(twin, tmp_path):
    path = save(tmp_path / "m.safetensors", twin)
    checkpoint = open_checkpoint(path)
    for key, tensor in load_file(path).items():
        rows = [read_rows(checkpoint.runs[piece]) for piece in pieces(key, "bfl")]
        assert torch.equal(torch.cat(rows), tensor.float())
