"""Folders that are missing, truncated, hostile or of another model: a clear error before anything loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from clvr.errors import ClvrError, MissingFileError, WeightsError
from clvr.flux2 import headers
from clvr.flux2.folder import Folder, find, inspect
from clvr.flux2.loading import check_architecture, load_pipeline

from . import tiny_klein

DIT = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_klein.make(tmp_path_factory.mktemp("klein"))


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_whole_folder_passes(whole):
    found = inspect(whole)
    assert isinstance(found, Folder)
    assert not found.distilled
    assert found.sampling.height == 64
    check_architecture(found)


def test_a_sharded_folder_passes(folder):
    tensors = load_file(folder / DIT)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({n: tensors[n] for n in held}, folder / "transformer" / shard)
    index = {"weight_map": {n: shard for shard, held in shards.items() for n in held}}
    (folder / f"{DIT}.index.json").write_text(json.dumps(index))
    (folder / DIT).unlink()
    check_architecture(inspect(folder))
    (folder / "transformer" / "b.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"lacks transformer/b\.safetensors"):
        inspect(folder)


def test_an_index_that_leaves_its_folder_is_refused(folder):
    (folder / DIT).unlink()
    (folder / f"{DIT}.index.json").write_text('{"weight_map": {"x": "../../secret.safetensors"}}')
    with pytest.raises(WeightsError, match="no file of its folder"):
        inspect(folder)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(MissingFileError, match="There is no folder"):
        find(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "transformer/config.json",
        DIT,
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(MissingFileError, match=name):
        inspect(folder)


def test_all_missing_files_are_named_at_once(folder):
    for part in ("vae", "transformer"):
        shutil.rmtree(folder / part)
    with pytest.raises(MissingFileError, match=r"transformer/config\.json, vae/config\.json, .*vae/diff"):
        inspect(folder)


def test_another_pipeline_is_refused(folder):
    edit_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(WeightsError, match="'StableDiffusionPipeline', not a Flux2KleinPipeline"):
        inspect(folder)


def test_a_part_of_another_class_is_refused_before_it_is_imported(folder):
    edit_json(folder / "model_index.json", vae=["evil_module", "AutoencoderKLFlux2"])
    with pytest.raises(WeightsError, match="as vae"):
        inspect(folder)


@pytest.mark.parametrize("name", ["model_index.json", "clvr.json"])
@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"a": NaN'])
def test_damaged_json_is_told(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(WeightsError, match=name):
        inspect(folder)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"height": "64"}, {"colour": 1}, {"text_encoder_out_layers": []}])
def test_sampling_defaults_that_make_no_sense_are_told(folder, changes):
    edit_json(folder / "clvr.json", **changes)
    with pytest.raises(WeightsError, match=r"clvr\.json"):
        inspect(folder)


@pytest.mark.parametrize("kept", [0, 5, 9, 1000, -1])
def test_a_truncated_file_is_told_without_loading(folder, kept):
    data = (folder / DIT).read_bytes()
    (folder / DIT).write_bytes(data[:kept])
    with pytest.raises(WeightsError, match="diffusion_pytorch_model"):
        inspect(folder)


def test_truncation_names_the_bytes(folder):
    data = (folder / DIT).read_bytes()
    (folder / DIT).write_bytes(data[:-100])
    with pytest.raises(WeightsError, match=f"truncated: {len(data) - 100} of {len(data)} bytes"):
        inspect(folder)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".PTH"])
def test_a_pickle_is_refused(tmp_path, suffix):
    (tmp_path / f"model{suffix}").write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match="Pickles are never loaded"):
        find(tmp_path / f"model{suffix}")


def test_a_folder_with_only_pickles_is_refused(folder):
    (folder / DIT).rename(folder / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"diffusion_pytorch_model\.bin, a pickle"):
        inspect(folder)


def test_a_single_file_is_told_to_be_a_folder(folder):
    with pytest.raises(WeightsError, match="single file"):
        find(folder / DIT)


def test_a_wrong_shape_is_named(folder):
    edit_tensors(folder / DIT, lambda t: t.update({"x_embedder.weight": torch.zeros(128, 64)}))
    with pytest.raises(WeightsError, match=r"x_embedder\.weight has the shape \(128, 64\) instead of"):
        check_architecture(inspect(folder))


def test_wrong_keys_are_named(folder):
    edit_tensors(folder / DIT, lambda t: t.update({"img_in.weight": t.pop("x_embedder.weight")}))
    with pytest.raises(WeightsError, match=r"x_embedder\.weight is missing; img_in\.weight has no place"):
        load_pipeline(inspect(folder))


def test_a_config_of_another_size_is_told(folder):
    edit_json(folder / "transformer" / "config.json", num_layers=2)
    with pytest.raises(WeightsError, match=r"transformer_blocks\.1\..* is missing"):
        check_architecture(inspect(folder))


def test_an_impossible_config_is_told(folder):
    edit_json(folder / "vae" / "config.json", norm_num_groups=0)
    with pytest.raises(WeightsError, match=r"describe no FLUX\.2"):
        check_architecture(inspect(folder))


def test_a_text_encoder_of_another_width_is_told(folder):
    edit_json(folder / "clvr.json", text_encoder_out_layers=[1, 2])
    with pytest.raises(WeightsError, match="context of width 96"):
        check_architecture(inspect(folder))
    (folder / "clvr.json").unlink()
    with pytest.raises(WeightsError, match="with 4 layers"):
        check_architecture(inspect(folder))


class Hub:
    """A model hub: what is in the cache, what it would download, and what it was asked."""

    def __init__(self, cached=None, online=None):
        self.cached, self.online, self.asked = cached, online, []

    def __call__(self, name, allow_patterns, local_files_only=False):
        self.asked.append("cache" if local_files_only else "network")
        found = self.cached if local_files_only else self.online
        if found is None:
            raise LocalEntryNotFoundError("not found")
        return str(found)


def test_a_hub_id_is_taken_from_the_cache_without_network(whole):
    hub = Hub(cached=whole)
    assert find("owner/model", hub).path == whole
    assert hub.asked == ["cache"]


def test_a_hub_id_is_downloaded_when_the_cache_is_incomplete(whole, folder):
    (folder / DIT).unlink()
    hub = Hub(cached=folder, online=whole)
    assert find("owner/model", hub).path == whole
    assert hub.asked == ["cache", "network"]


def test_an_unknown_hub_id_is_told():
    with pytest.raises(MissingFileError, match="model hub does not give"):
        find("owner/model", Hub())


@pytest.mark.parametrize("name", ["./owner/model", "/owner/model", "owner", "a/b/c", "../a", "tests/nothing"])
def test_a_path_never_goes_to_the_network(name, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    hub = Hub()
    with pytest.raises(MissingFileError, match="There is no folder"):
        find(name, hub)
    assert hub.asked == []


def raw(tmp_path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = tmp_path / "hostile.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def tensor(start, end, dtype="U8", shape=None):
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "not JSON"),
        (b"{" * 50_000, "hostile"),
        (b'{"a": \xff}', "hostile"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "hostile"),
        ({"a": 3}, "not described by"),
        ({"a": tensor(0, 4) | {"extra": 1}}, "not described by"),
        ({"a": tensor(0, 4, "F33")}, "unknown dtype"),
        ({"a": tensor(0, 4, ["U8"])}, "unknown dtype"),
        ({"a": tensor(0, 4, shape=[-4])}, "impossible shape"),
        ({"a": tensor(0, 4, shape=[True, 4])}, "impossible shape"),
        ({"a": tensor(0, 4, shape=[4.0])}, "impossible shape"),
        ({"a": tensor(0, 1, shape=[1] * 1000)}, "impossible shape"),
        ({"a": tensor(0, 4, shape=[5])}, "does not take 4 bytes"),
        ({"a": tensor(0, 4, shape=[2**62] * 16)}, "does not take 4 bytes"),
        ({"a": tensor(4, 0, shape=[4])}, "impossible offsets"),
        ({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0]}}, "impossible offsets"),
        ({"a": tensor(0, 3), "b": tensor(2, 4)}, "overlaps"),
        ({"a": tensor(0, 1), "b": tensor(2, 4)}, "leaves a gap"),
        ({"a": tensor(1, 4)}, "leaves a gap"),
        ({"a": tensor(0, 400)}, "truncated"),
        ({"a": tensor(0, 2)}, "2 bytes follow"),
        ({"__metadata__": {"a": 1}}, "metadata"),
        (
            b'{"a": {"dtype": "U8", "dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}',
            "names 'dtype' twice",
        ),
        (b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "a": 3}', "names 'a' twice"),
    ],
)
def test_hostile_headers_are_refused(tmp_path, header, message):
    with pytest.raises(WeightsError, match=message):
        headers.read(raw(tmp_path, header, b"1234"))


@pytest.mark.parametrize("length", [2**64 - 1, 2**40, 101, 100_000_001])
def test_a_huge_header_length_reads_nothing(tmp_path, length):
    file = tmp_path / "hostile.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b"{}" + b" " * 98)
    with pytest.raises(WeightsError, match="too few"):
        headers.read(file)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, framed):
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    file.write_bytes(len(data).to_bytes(8, "little") + data if framed else data)
    try:
        headers.read(file)
    except ClvrError as error:
        told = str(error)
    else:
        told = ""
    assert len(told) < 1000


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda n: n != "__metadata__"),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.bool, torch.float8_e4m3fn]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=5,
    )
)
def test_what_safetensors_writes_is_read(tmp_path_factory, described):
    file = tmp_path_factory.getbasetemp() / "written.safetensors"
    tensors = {n: torch.zeros(shape, dtype=dtype) for n, (dtype, shape) in described.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    header = headers.read(file)
    assert header.shapes == {n: tuple(t.shape) for n, t in tensors.items()}
    assert header.metadata == {"format": "pt"}
