"""One LoRA in any naming is one increment; every key is used or named; rows are rows of the whole."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clvr.dswm.adapters import is_adapter, matrices, open_adapter
from clvr.errors import MissingFileError, WeightsError
from clvr.flux2.keymap import pieces

from .adapters_fixtures import SHAPES, loha, lokr, lora, modules, opened, piece_delta, write

BFL, DIFFUSERS = modules("bfl"), modules("diffusers")
QKV = "double_blocks.0.img_attn.qkv"
few = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)

PREFIXES = {
    "diffusion_model.": "comfyui",
    "model.diffusion_model.": "comfyui",
    "transformer.": "diffusers",
    "": None,
    "base_model.model.": "peft",
    "base_model.model.transformer.": "peft",
    "base_model.model.diffusion_model.": "peft",
    "lora_unet_": "kohya",
    "lora_transformer_": "onetrainer",
    "lycoris_": "lycoris",
}
HALVES = (
    (".lora_B.weight", ".lora_A.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
    (".lora_B.my-own_adapter.weight", ".lora_A.my-own_adapter.weight"),
    (".lora_up.weight", ".lora_down.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
)
namings = st.tuples(st.sampled_from(["bfl", "diffusers"]), st.sampled_from(list(PREFIXES)), st.sampled_from(HALVES))


def spelled(prefix, module):
    return prefix + (module.replace(".", "_") if prefix.endswith("_") else module)


def written(module, shape, naming, rank=2, alpha=None, seed=0):
    """The LoRA of a BFL module, by its own name or cut into those of diffusers."""
    layout, prefix, (up, down) = naming
    high, low = lora(shape, rank, seed)
    by_piece = dict(
        zip(pieces(f"{module}.weight", "bfl"), high.chunk(len(pieces(f"{module}.weight", "bfl"))), strict=True)
    )
    found = {}
    for name in [module] if layout == "bfl" else DIFFUSERS:
        held = pieces(f"{name}.weight", layout)
        if held[0] in by_piece:
            stem = spelled(prefix, name)
            found[stem + up] = torch.cat([by_piece[piece] for piece in held])
            found[stem + down] = low
            if alpha is not None:
                found[f"{stem}.alpha"] = torch.tensor(alpha)
    return found


@few
@given(chosen=st.lists(st.sampled_from(list(BFL)), min_size=1, max_size=4, unique=True), data=st.data())
def test_a_lora_is_the_same_increment_in_every_mixture_of_namings(tmp_path, chosen, data):
    plain, mixed = {}, {}
    for seed, module in enumerate(chosen):
        given = {
            "rank": data.draw(st.integers(1, 5)),
            "alpha": data.draw(st.none() | st.floats(-4, 4, width=32)),
            "seed": seed,
        }
        plain |= written(module, BFL[module], ("bfl", "diffusion_model.", HALVES[0]), **given)
        mixed |= written(module, BFL[module], data.draw(namings), **given)
    one, two = opened(tmp_path / "plain.safetensors", plain), opened(tmp_path / "mixed.safetensors", mixed)
    assert set(one.updates) == set(two.updates)
    for piece in one.updates:
        assert torch.equal(piece_delta(one, piece), piece_delta(two, piece)), piece


@pytest.mark.parametrize("layout", ["bfl", "diffusers"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_module_of_the_model_is_found_under_every_prefix(tmp_path, prefix, layout):
    tensors = {}
    for module, shape in BFL.items():
        tensors |= written(module, shape, (layout, prefix, HALVES[0]))
    adapter = opened(tmp_path / "a.safetensors", tensors)
    assert set(adapter.updates) == {piece for piece, shape in SHAPES.items() if len(shape) == 2}
    assert adapter.format == (PREFIXES[prefix] or layout)


@pytest.mark.parametrize("layout", ["bfl", "diffusers"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", [".diff", ".w_norm"])
def test_norms_take_dense_differences(tmp_path, prefix, layout, suffix):
    norms = modules(layout, dimensions=1)
    tensors = {
        spelled(prefix, name) + suffix: torch.full(shape, i + 1.0) for i, (name, shape) in enumerate(norms.items())
    }
    adapter = opened(tmp_path / "a.safetensors", tensors)
    for i, name in enumerate(norms):
        (piece,) = pieces(f"{name}.weight", layout)
        assert torch.equal(piece_delta(adapter, piece), torch.full(SHAPES[piece], i + 1.0))


def test_underscores_hide_no_two_modules_behind_one_name():
    names = [*BFL, *DIFFUSERS, *modules("bfl", 1), *modules("diffusers", 1)]
    assert len({name.replace(".", "_") for name in names}) == len(names)


FORMS = {
    "LoRA": lambda shape: dict(zip(("lora_up.weight", "lora_down.weight"), lora(shape, 5), strict=True)),
    "LoKr": lokr,
    "LoKr of low rank": lambda shape: lokr(shape, ranks=(2, 3)),
    "LoKr with a tall second factor": lambda shape: lokr(shape, factor=1),
    "LoKr with a short second factor": lambda shape: lokr(shape, factor=shape[0]),
    "LoHa": lambda shape: loha(shape, 3),
    "difference": lambda shape: {"diff": torch.randn(shape)},
}


@pytest.mark.parametrize("slab", [1, 300, 1 << 20], ids=lambda slab: f"slab {slab}")
@pytest.mark.parametrize("form", FORMS)
def test_rows_are_rows_of_the_whole(tmp_path, monkeypatch, form, slab):
    tensors = {f"{QKV}.{part}": tensor for part, tensor in FORMS[form](BFL[QKV]).items()}
    adapter = opened(tmp_path / "a.safetensors", tensors)
    assert len(adapter.updates) == 3
    whole = {piece: piece_delta(adapter, piece) for piece in adapter.updates}
    monkeypatch.setattr(matrices, "SLAB", slab)
    for piece, ((update,), wanted) in {p: (adapter.updates[p], whole[p]) for p in whole}.items():
        for start, stop in ((0, 1), (127, 128), (3, 101), (40, 56), (0, 128), (5, 5)):
            found = update.rows(start, stop)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, wanted[start:stop], rtol=1e-5, atol=1e-5, msg=piece)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_factors_of_any_float_are_multiplied_in_fp32(tmp_path, dtype):
    up, down = (factor.to(dtype) for factor in lora(BFL["img_in"], 4))
    adapter = opened(tmp_path / "a.safetensors", {"img_in.lora_up.weight": up, "img_in.lora_down.weight": down})
    torch.testing.assert_close(piece_delta(adapter, "img_in.weight:0"), up.float() @ down.float())


def test_threads_may_share_an_adapter(tmp_path):
    adapter = opened(tmp_path / "a.safetensors", written(QKV, BFL[QKV], ("bfl", "", HALVES[0])))
    (update,) = adapter.updates[f"{QKV}.weight:1"]
    wanted, found = update.rows(0, 128), {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: update.rows(0, 128)})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], wanted) for i in range(8))


def test_the_format_names_what_a_file_mixes(tmp_path):
    tensors = written("img_in", BFL["img_in"], ("bfl", "lora_unet_", HALVES[3]))
    tensors |= {f"diffusion_model.txt_in.{part}": t for part, t in lokr(BFL["txt_in"]).items()}
    assert opened(tmp_path / "a.safetensors", tensors).format == "comfyui + kohya LoKr + LoRA"


@few
@given(
    garbage=st.text("abcdefgh_.0123-é ", min_size=1, max_size=60),
    end=st.sampled_from(["", ".lora_A.weight", ".alpha", ".diff"]),
)
def test_an_unknown_key_is_always_named_with_its_nearest_module(tmp_path, garbage, end):
    key = garbage + end
    tensors = written("img_in", BFL["img_in"], ("bfl", "diffusion_model.", HALVES[0])) | {key: torch.zeros(2, 2)}
    with pytest.raises(WeightsError) as caught:
        opened(tmp_path / "a.safetensors", tensors)
    assert repr(key) in caught.value.thing
    assert "the nearest module is" in caught.value.thing


def test_a_misspelled_module_gets_the_right_one_as_suggestion(tmp_path):
    with pytest.raises(WeightsError, match=r"'transformer.proj_ot.lora_A.weight' \(the nearest module is 'proj_out'\)"):
        opened(tmp_path / "a.safetensors", {"transformer.proj_ot.lora_A.weight": torch.zeros(2, 2)})


def test_of_many_unknown_keys_the_first_are_named_and_all_counted(tmp_path):
    with pytest.raises(WeightsError, match=r"'key07.*and 92 more"):
        opened(tmp_path / "a.safetensors", {f"key{i:02}.alpha": torch.zeros(1) for i in range(100)})


def good(**extra):
    return written("img_in", BFL["img_in"], ("bfl", "diffusion_model.", HALVES[0])) | extra


def halves(up, down, stem="diffusion_model.img_in"):
    return {f"{stem}.lora_B.weight": torch.zeros(up), f"{stem}.lora_A.weight": torch.zeros(down)}


IMG = "diffusion_model.img_in"
SQUARE = torch.zeros(128, 128)
ONE = torch.tensor(1.0)
TWO = torch.zeros(2, 2)
FAULTS = {
    "half": ({f"{IMG}.lora_A.weight": torch.zeros(2, 128)}, r"one half of img_in only.*no up \(B\)"),
    "other half": ({f"{IMG}.lora_up.weight": torch.zeros(128, 2)}, r"one half of img_in only.*no down \(A\)"),
    "alpha alone": ({f"{IMG}.alpha": ONE}, r"no complete update of img_in: diffusion_model.img_in.alpha"),
    "ranks": (good(**{f"{IMG}.lora_A.weight": torch.zeros(3, 128)}), r"lora_B.weight \(128, 2\).*do not multiply"),
    "no rank": (halves((128, 0), (0, 128)), "do not multiply"),
    "vector": (good(**{f"{IMG}.lora_A.weight": torch.zeros(128)}), "do not multiply"),
    "huge rank": (
        halves((128, 129), (129, 128)),
        "has rank 129, more than its 128 x 128 weights",
    ),
    "width": (
        halves((4096, 2), (2, 128)),
        r"img_in makes \(4096, 128\) where the model has \(128, 128\).*klein 4B is 3072 wide",
    ),
    "depth": (good(**{"diffusion_model.single_blocks.23.linear2.lora_A.weight": TWO}), "deeper model.*block 23"),
    "kohya depth": (good(**{"lora_unet_double_blocks_7_txt_mlp_0.alpha": TWO}), "deeper model.*block 7.*2 double"),
    "norm": (halves((2, 2), (2, 2), "single_blocks.0.norm.key_norm"),
             r"makes \(2, 2\) where the model has \(128,\)"),
    "twice": (good(**{"transformer.x_embedder.lora_down.weight": torch.zeros(2, 128)}), "holds the same twice"),
    "two adapters": (good(**{f"{IMG}.lora_A.other.weight": torch.zeros(2, 128)}), "holds the same twice"),
    "fused and split": (
        {**written(QKV, BFL[QKV], ("bfl", "", HALVES[0])), **written(QKV, BFL[QKV], ("diffusers", "", HALVES[0]))},
        r"img_attn.qkv.weight:\d twice: as double_blocks.0.img_attn.qkv and as transformer_blocks.0.attn.to_[qkv]",
    ),
    "halves in other orders": (
        {"final_layer.adaLN_modulation.1.lora_A.weight": TWO, "norm_out.linear.lora_B.weight": TWO},
        "one half of final_layer.adaLN_modulation.1 only",
    ),
    "text encoder": (good(**{"lora_te1_layers_0.alpha": TWO}), "text encoder too: 'lora_te1_layers_0.alpha'"),
    "text encoder, diffusers": (good(**{"text_encoder.layers.0.lora_A.weight": TWO}), "changes the text encoder"),
    "whole tensor": (good(**{"diffusion_model.txt_in.weight": TWO}), "whole tensor beside its LoRA"),
    "fp8": (good(**{f"{IMG}.lora_A.weight": torch.zeros(2, 128).to(torch.float8_e4m3fn)}), "F8_E4M3: quantised"),
    "integers": (good(**{f"{IMG}.lora_A.weight": torch.zeros(2, 128, dtype=torch.int8)}), "I8: quantised or whole"),
    "alpha nan": (good(**{f"{IMG}.alpha": torch.tensor(float("nan"))}), "img_in.alpha is nan, no finite number"),
    "alpha inf": (good(**{f"{IMG}.alpha": torch.tensor(float("inf"), dtype=torch.bfloat16)}), "alpha is inf"),
    "alphas": (good(**{f"{IMG}.alpha": torch.zeros(2)}), r"alpha is F32 \[2\], no single number"),
    "alpha of a difference": ({f"{IMG}.diff": SQUARE, f"{IMG}.alpha": ONE}, "Remove the alpha"),
    "LoRA and difference": (good(**{f"{IMG}.diff": SQUARE}), "no complete update of img_in"),
    "LoRA and LoKr": (good(**{f"{IMG}.lokr_w1": TWO, f"{IMG}.lokr_w2": TWO}), "no complete update of img_in"),
    "half a LoKr": ({f"{IMG}.lokr_w1": TWO, f"{IMG}.lokr_w2_a": TWO}, "no complete update of img_in"),
    "LoKr twice": ({f"{IMG}.{p}": TWO for p in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2")}, "no complete update"),
    "LoKr's shape": ({f"{IMG}.lokr_w1": TWO, f"{IMG}.lokr_w2": TWO}, r"makes \(4, 4\) where"),
    "convolution": ({f"{IMG}.lokr_w1": TWO, f"{IMG}.lokr_w2": torch.zeros(64, 64, 1, 1)}, "no complete update"),
    "half a LoHa": ({f"{IMG}.hada_w1_a": TWO, f"{IMG}.hada_w1_b": TWO}, "no complete update"),
    "LoHa's halves": (
        {**{f"{IMG}.{p}": t for p, t in loha((128, 128), 2).items()}, f"{IMG}.hada_w2_a": TWO},
        "two halves of img_in",
    ),
    "difference's shape": ({f"{IMG}.diff": torch.zeros(128)}, r"makes \(128,\) where the model has \(128, 128\)"),
    "nothing": ({}, "holds no tensor"),
}  # fmt: skip
REFUSED = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_magnitude_vector.default.weight": "DoRA",
    "diff_b": "a bias",
    "lora_B.bias": "a bias",
    "b_norm": "a bias",
    "lora_mid.weight": "Tucker",
    "lokr_t2": "Tucker",
    "hada_t1": "Tucker",
    "oft_blocks": "OFT or BOFT",
    "oft_R.default.weight": "OFT or BOFT",
    "boft_R": "OFT or BOFT",
    "rescale": "OFT or BOFT",
    "a1.weight": "GLoRA",
    "set_weight": "a weight to set",
    "reshape_weight": "the model's shape",
    "scalar": "a learned factor",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_with_its_key(tmp_path, fault):
    tensors, message = FAULTS[fault]
    with pytest.raises(WeightsError, match=message) as caught:
        opened(tmp_path / "a.safetensors", tensors)
    assert caught.value.remedy
    assert str(tmp_path) in caught.value.thing


@pytest.mark.parametrize("part", REFUSED)
def test_forms_that_cannot_be_added_are_refused_by_their_name(tmp_path, part):
    path = write(tmp_path / "a.safetensors", good(**{f"{IMG}.{part}": torch.zeros(128)}))
    assert is_adapter(path)
    with pytest.raises(WeightsError, match=rf"holds .*{REFUSED[part]}.*{part}") as caught:
        open_adapter(path, SHAPES)
    assert caught.value.remedy


def test_adapters_are_told_from_checkpoints_by_their_names(tmp_path):
    whole = {f"{name}.weight": torch.zeros(1) for name in [*BFL, *DIFFUSERS]} | {"img_in.bias": torch.zeros(1)}
    whole |= {"img_in.weight_scale": torch.zeros(1), "img_in.comfy_quant": torch.zeros(1)}
    assert not is_adapter(write(tmp_path / "whole.safetensors", whole))
    for i, (up, _) in enumerate(HALVES):
        assert is_adapter(write(tmp_path / f"{i}.safetensors", {f"anything{up}": torch.zeros(1)}))
    assert not is_adapter(tmp_path)
    with pytest.raises(MissingFileError):
        is_adapter(tmp_path / "missing.safetensors")


def test_a_folder_with_a_pickle_alone_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    assert is_adapter(tmp_path)
    with pytest.raises(WeightsError, match=r"adapter_model\.bin, a pickle"):
        open_adapter(tmp_path, SHAPES)
