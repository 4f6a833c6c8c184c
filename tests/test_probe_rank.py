"""Spectral capacity: effective ranks against exact ones, layers of every layout, bounded memory; the power law."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from clvr.errors import MissingFileError, SettingError, WeightsError
from clvr.flux2.keymap import to_bfl
from clvr.probe import rank
from clvr.probe.fit import power_law

from . import tiny_klein

BOTH = pytest.mark.parametrize("entropy", ["energy", "sigma"])
SHAPES = st.tuples(st.integers(2, 40), st.integers(2, 40))
SIGMAS = st.lists(st.floats(0, 1e6), min_size=1, max_size=30).map(lambda v: torch.tensor(v, dtype=torch.float64))


def matrix(rows, columns, seed=0, dtype=torch.float32):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_spectrum(sigma, rows, columns, seed=0):
    left = torch.linalg.qr(matrix(rows, len(sigma), seed, torch.float64)).Q
    right = torch.linalg.qr(matrix(columns, len(sigma), seed + 1, torch.float64)).Q
    return left @ torch.diag(torch.tensor(sigma, dtype=torch.float64)) @ right.T


@BOTH
@given(st.integers(1, 12), st.floats(1e-20, 1e20), st.integers(0, 99))
def test_k_equal_singular_values_have_rank_k(entropy, k, size, seed):
    found = rank.singular_values(with_spectrum([size] * k, 20, 12, seed))
    assert rank.effective_rank(found, entropy) == pytest.approx(k, rel=1e-9)


def test_the_two_definitions_are_those_of_energy_and_of_roy_and_vetterli():
    sigma = torch.tensor([2.0, 1.0])
    energy, plain = (0.8, 0.2), (2 / 3, 1 / 3)
    expected = [math.exp(-sum(p * math.log(p) for p in share)) for share in (energy, plain)]
    assert [rank.effective_rank(sigma, e) for e in ("energy", "sigma")] == pytest.approx(expected)


@BOTH
@given(SIGMAS, st.floats(1e-100, 1e100))
def test_the_rank_lies_between_one_and_the_number_of_values_and_ignores_scale(entropy, sigma, scale):
    found = rank.effective_rank(sigma, entropy)
    if sigma.max() > 1e-100:
        assert 1 - 1e-9 <= found <= int((sigma > 0).sum()) + 1e-6
        assert rank.effective_rank(sigma * scale, entropy) == pytest.approx(found, rel=1e-6)


@given(SIGMAS)
def test_energy_prefers_the_large_values_so_its_rank_is_never_above_that_of_sigma(sigma):
    assert rank.effective_rank(sigma, "energy") <= rank.effective_rank(sigma, "sigma") * (1 + 1e-9)


@BOTH
def test_a_zero_matrix_has_no_rank(entropy):
    assert rank.effective_rank(rank.singular_values(torch.zeros(3, 4)), entropy) == 0


def test_an_unknown_entropy_is_refused():
    with pytest.raises(SettingError, match="'renyi'"):
        rank.effective_rank(torch.ones(2), "renyi")


@settings(max_examples=40)
@given(SHAPES, st.integers(0, 1000), st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_singular_values_are_those_of_a_full_decomposition(shape, seed, dtype):
    weight = matrix(*shape, seed, dtype)
    exact = torch.linalg.svdvals(weight.double())
    assert torch.allclose(rank.singular_values(weight), exact, atol=1e-7 * float(exact[0]), rtol=0)


@settings(max_examples=25)
@given(SHAPES, st.integers(0, 1000), st.sampled_from([1e-30, 1e-3, 1e30]))
def test_neither_transposing_nor_scaling_changes_a_rank(shape, seed, scale):
    weight = matrix(*shape, seed)
    plain = rank.singular_values(weight)
    for other in (weight.T, weight * scale):
        for entropy in ("energy", "sigma"):
            changed = rank.effective_rank(rank.singular_values(other), entropy)
            assert changed == pytest.approx(rank.effective_rank(plain, entropy), rel=1e-5)


@BOTH
def test_a_large_matrix_with_a_steep_spectrum_is_as_accurate_as_its_svd(entropy):
    weight = with_spectrum([10 ** (-n / 30) for n in range(300)], 700, 300).float()
    exact = rank.effective_rank(torch.linalg.svdvals(weight.double()), entropy)
    assert rank.effective_rank(rank.singular_values(weight), entropy) == pytest.approx(exact, rel=1e-5)


def test_chunks_do_not_change_the_values(monkeypatch):
    weight = matrix(50, 7)
    whole = rank.singular_values(weight)
    monkeypatch.setattr(rank, "_CHUNK", 20)
    assert torch.allclose(rank.singular_values(weight), whole, rtol=1e-12, atol=0)


@pytest.fixture(scope="module")
def klein(tmp_path_factory):
    """One tiny transformer as a diffusers folder, as shards, and as a BFL file with ComfyUI's prefix."""
    root = tmp_path_factory.mktemp("klein")
    torch.manual_seed(3)
    model = tiny_klein.transformer(double=2, single=2)
    model.save_pretrained(root / "whole")
    model.save_pretrained(root / "shards", max_shard_size="200KB")
    tensors = to_bfl(model.state_dict())
    save_file(
        {f"model.diffusion_model.{name}": t.contiguous() for name, t in tensors.items()}, root / "bfl.safetensors"
    )
    return root


def measured(path):
    return {one.layer.name: (one.energy, one.sigma) for one in map(rank.measure, rank.core_layers(path))}


def test_every_layout_of_one_model_has_the_same_layers_and_ranks(klein):
    whole = measured(klein / "whole")
    assert len(list((klein / "shards").glob("*.safetensors"))) > 1
    assert len(whole) == 2 * 12 + 2 * 2
    for other in ("shards", "bfl.safetensors"):
        found = measured(klein / other)
        assert found.keys() == whole.keys()
        for name, ranks in found.items():
            assert ranks == pytest.approx(whole[name], rel=1e-6)


def test_core_layers_are_the_matrices_of_the_blocks(klein):
    kinds = {layer.kind for layer in rank.core_layers(klein / "whole")}
    assert "transformer_blocks.#.attn.to_q.weight" in kinds
    assert "single_transformer_blocks.#.attn.to_out.weight" in kinds
    assert not [kind for kind in kinds if "norm" in kind or "embed" in kind or "modulation" in kind]


def test_the_median_is_over_layers_and_by_definition(klein):
    ranks = [rank.measure(layer) for layer in rank.core_layers(klein / "whole")]
    for entropy in ("energy", "sigma"):
        ordered = sorted(one.rank(entropy) for one in ranks)
        middle = (ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2
        assert len(ordered) % 2 == 0
        assert rank.capacity(ranks, entropy) == middle


def other_model(path, **changes):
    tensors = {
        "joint_blocks.0.x_block.attn.qkv.weight": matrix(24, 8),
        "joint_blocks.0.x_block.adaLN_modulation.1.weight": matrix(24, 8),
        "joint_blocks.0.x_block.attn.proj.bias": torch.ones(8),
        "x_embedder.proj.weight": matrix(8, 8),
        "text_encoders.t5.block.0.layer.0.weight": matrix(8, 8),
        **changes,
    }
    save_file(tensors, path)
    return path


def test_other_transformers_are_measured_by_the_names_of_their_blocks(tmp_path):
    path = other_model(tmp_path / "sd3.safetensors")
    assert [layer.name for layer in rank.core_layers(path)] == ["joint_blocks.0.x_block.attn.qkv.weight"]


def test_the_scale_of_fp8_changes_nothing(tmp_path):
    name = "blocks.0.attn.to_q.weight"
    small = matrix(24, 8).to(torch.float8_e4m3fn)
    save_file({name: small}, tmp_path / "plain.safetensors")
    save_file({name: small, f"{name}_scale": torch.tensor(0.03)}, tmp_path / "scaled.safetensors")
    assert measured(tmp_path / "plain.safetensors") == measured(tmp_path / "scaled.safetensors")


def test_what_cannot_be_measured_is_named(tmp_path):
    with pytest.raises(MissingFileError):
        rank.core_layers(tmp_path / "none.safetensors")
    path = other_model(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="no core layers"):
        rank.core_layers(path, "nothing")
    with pytest.raises(SettingError, match="no regular expression"):
        rank.core_layers(path, "(")
    name = "joint_blocks.0.x_block.attn.qkv.weight"
    packed = other_model(tmp_path / "b.safetensors", **{name: torch.zeros(4, 4, dtype=torch.uint8)})
    with pytest.raises(WeightsError, match="quantised"):
        rank.core_layers(packed)
    for bad in (math.nan, math.inf):
        weight = matrix(24, 8)
        weight[3, 1] = bad
        broken = other_model(tmp_path / "c.safetensors", **{name: weight})
        with pytest.raises(WeightsError, match=name):
            rank.measure(rank.core_layers(broken)[0])


PEAK = """
import resource, sys
from pathlib import Path
from clvr.probe import rank
layers = rank.core_layers(Path(sys.argv[1]))
rank.measure(layers[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ranks = [rank.measure(layer) for layer in layers]
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(grown, max(layer.peak_bytes for layer in layers), len(ranks))
"""


def test_memory_is_that_of_one_layer_not_of_the_file(tmp_path):
    path = tmp_path / "large.safetensors"
    save_file({f"blocks.{n}.ff.weight": matrix(64, 16384, n) for n in range(60)}, path)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], cwd=Path(rank.__file__).parents[2], capture_output=True, check=True
    )
    grown, said, count = map(int, done.stdout.split())
    assert count == 60
    assert path.stat().st_size > 5 * said / 2
    assert grown < said


def test_the_paper_s_models_follow_its_power_law():
    capacities = (514.48, 604.11, 852.15, 977.86, 1063.40, 1411.05, 1586.36)
    areas = (17.67, 42.53, 31.75, 53.79, 55.71, 70.83, 73.89)
    law = power_law(capacities, areas)
    assert (law.exponent, law.r_squared) == pytest.approx((1.074, 0.773), abs=5e-4)


@given(st.floats(-3, 3), st.floats(0.01, 100), st.lists(st.integers(1, 1000), min_size=2, max_size=9, unique=True))
def test_an_exact_law_is_found_again(exponent, factor, x):
    law = power_law(x, [factor * value**exponent for value in x])
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law(x[0]) == pytest.approx(factor * x[0] ** exponent, rel=1e-5)


@pytest.mark.parametrize(("x", "y"), [([1, 1], [1, 2]), ([1], [1]), ([], []), ([1, 2], [0, 1]), ([1, 2, 3], [1, 2])])
def test_too_little_for_a_law_is_refused(x, y):
    with pytest.raises(SettingError):
        power_law(x, y)
