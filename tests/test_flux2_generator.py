"""Drawing on a tiny true model: equal to diffusers bit for bit, and honest about what it cannot do."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from clvr.context import Context, Turn
from clvr.errors import ContextLimitError, DeviceMemoryError, ImageError, SettingError
from clvr.flux2 import generator as module
from clvr.flux2.generator import Flux2Generator

from . import tiny_klein

SIZE = (64, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_klein.make(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="module")
def distilled_folder(tmp_path_factory):
    return tiny_klein.make(tmp_path_factory.mktemp("distilled"), distilled=True)


@pytest.fixture(scope="module")
def loaded(folder):
    return Flux2Generator.load(folder)


@pytest.fixture
def generator(loaded):
    loaded.release()
    return loaded


@pytest.fixture(scope="module")
def pipeline(folder):
    made = Flux2KleinPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def picture(seed, size=(64, 64)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def context(images=(), goal="a red circle", turns=()):
    return Context(goal, turns, tuple((f"IMG_GEN_{i}", image) for i, image in enumerate(images)))


def direct(pipeline, what, seeds, size=SIZE, length=64, steps=2, guidance=4.0):
    return pipeline(
        image=[image for _, image in what.images] or None,
        prompt=what.text,
        width=size[0],
        height=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        num_images_per_prompt=len(seeds),
        generator=[torch.Generator("cpu").manual_seed(s) for s in seeds],
        max_sequence_length=length,
        text_encoder_out_layers=tiny_klein.OUT_LAYERS,
    ).images


def assert_same(images, others):
    assert len(images) == len(others)
    for one, other in zip(images, others, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("seeds", [[7], [1, 2**63, 3]])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_pictures_equal_a_direct_call_bit_for_bit(generator, pipeline, count, seeds):
    what = context([picture(i, (64 + 32 * i, 80)) for i in range(count)])
    drawing = generator.draw(what, SIZE, seeds)
    assert_same(drawing.images, direct(pipeline, what, seeds))
    assert drawing.nfe == generator.nfe(len(seeds)) == 4 * len(seeds)
    assert drawing.notes == ()


def test_a_second_round_from_remembered_encodings_is_equal_too(generator, pipeline):
    what = context([picture(0)])
    generator.draw(what, SIZE, [0])
    assert_same(generator.draw(what, SIZE, [5]).images, direct(pipeline, what, [5]))


def test_other_sizes_equal_a_direct_call(generator, pipeline):
    what = context([picture(0, (64, 128))])
    drawing = generator.draw(what, (96, 48), [3])
    assert drawing.images[0].size == (96, 48)
    assert_same(drawing.images, direct(pipeline, what, [3], (96, 48)))


def test_a_distilled_model_draws_without_guidance(distilled_folder):
    generator = Flux2Generator.load(distilled_folder)
    pipeline = Flux2KleinPipeline.from_pretrained(distilled_folder)
    assert (generator.sampling.guidance, generator.nfe(3)) == (1.0, 6)
    what = context([picture(0)])
    drawing = generator.draw(what, SIZE, [1, 2])
    assert_same(drawing.images, direct(pipeline, what, [1, 2], guidance=1.0))
    assert drawing.nfe == 4


def test_guidance_asked_of_a_distilled_model_is_told_to_be_ignored(distilled_folder):
    generator = Flux2Generator.load(distilled_folder, steps=3, guidance=4)
    drawing = generator.draw(context(), SIZE, [1])
    assert drawing.nfe == generator.nfe(1) == 3
    assert "ignored" in drawing.notes[0]


def test_klein_values_hold_where_a_folder_has_no_clvr_json(folder, distilled_folder, tmp_path):
    from clvr.flux2.folder import Sampling, read_sampling

    assert read_sampling(tmp_path, distilled=False) == Sampling(1024, 1024, 28, 4.0, 512, (9, 18, 27))
    assert read_sampling(tmp_path, distilled=True) == Sampling(1024, 1024, 4, 1.0, 512, (9, 18, 27))
    assert read_sampling(folder, distilled=False).steps == 2


def test_steps_and_guidance_can_be_set(folder, pipeline):
    generator = Flux2Generator.load(folder, steps=3, guidance=1)
    assert generator.nfe(2) == 6
    assert_same(generator.draw(context(), SIZE, [4]).images, direct(pipeline, context(), [4], steps=3, guidance=1.0))


@pytest.mark.parametrize("changes", [{"steps": 0}, {"guidance": float("nan")}, {"guidance": -1.0}])
def test_settings_that_draw_nothing_are_refused(folder, changes):
    with pytest.raises(SettingError, match="draw nothing"):
        Flux2Generator.load(folder, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "tpu9"}, "is no device"),
        ({"device": "cuda:63"}, "no cuda:63"),
        ({"dtype": "int3"}, "no number format"),
        ({"offload": "disk"}, "no offload"),
        ({"offload": "model", "device": "cpu"}, "needs an accelerator"),
    ],
)
def test_unusable_devices_are_refused_by_name(folder, changes, message):
    with pytest.raises(SettingError, match=message):
        Flux2Generator.load(folder, **changes)


def test_bf16_draws(folder):
    drawing = Flux2Generator.load(folder, dtype="bfloat16").draw(context([picture(0)]), SIZE, [1])
    assert drawing.images[0].size == SIZE


def count_calls(module_):
    calls = []
    handle = module_.register_forward_hook(lambda *_: calls.append(1))
    return calls, handle


def test_unchanged_texts_and_references_are_encoded_once(generator, monkeypatch):
    texts, handle = count_calls(generator.pipeline.text_encoder)
    encodes = []
    encode = generator.pipeline.vae.encode
    monkeypatch.setattr(generator.pipeline.vae, "encode", lambda x: encodes.append(1) or encode(x))
    generator.draw(context([picture(0)]), SIZE, [1])
    assert (len(texts), len(encodes)) == (2, 1)
    generator.draw(context([picture(0), picture(1)]), SIZE, [1])
    assert (len(texts), len(encodes)) == (2, 2)
    generator.draw(context([picture(1)], goal="a blue cross"), SIZE, [1])
    assert (len(texts), len(encodes)) == (3, 2)
    handle.remove()


def test_a_long_text_is_padded_to_the_next_multiple_of_8(generator, pipeline):
    turns = (Turn(0, "r" * 60, "IMG_GEN_0"), Turn(1, "then a blue square"))
    what = context(turns=turns)
    assert generator.pipeline.count_tokens(what.text) == 129
    drawing = generator.draw(what, SIZE, [1])
    assert drawing.notes == ()
    assert_same(drawing.images, direct(pipeline, what, [1], length=136))


def test_what_the_encoder_cannot_read_is_named(generator, pipeline):
    turns = (Turn(0, "r" * 300, "IMG_GEN_0"), Turn(1, "s" * 200, "IMG_GEN_1"), Turn(2, "the newest"))
    shorter = context(turns=turns[1:])
    drawing = generator.draw(context(turns=turns), SIZE, [1])
    assert drawing.notes == ("left out of the text encoder's 512 tokens: r_0",)
    length = module.padded_length(generator.pipeline.count_tokens(shorter.text), 64)
    assert_same(drawing.images, direct(pipeline, shorter, [1], length=length))


@pytest.mark.parametrize(("tokens", "length"), [(1, 64), (64, 64), (65, 72), (72, 72), (700, 704)])
def test_prompts_pad_to_the_base_length_then_to_multiples_of_8(tokens, length):
    assert module.padded_length(tokens, base=64) == length


def test_a_goal_beyond_the_encoder_is_an_error(generator):
    with pytest.raises(ContextLimitError):
        generator.draw(context(goal="x" * 600), SIZE, [1])


@pytest.mark.parametrize("size", [(64, 60), (0, 64), (-16, 64)])
def test_sizes_off_the_grid_are_refused(generator, size):
    with pytest.raises(SettingError, match="multiples of 16"):
        generator.draw(context(), size, [1])


def test_a_small_reference_is_enlarged_and_told(generator, pipeline):
    drawing = generator.draw(context([picture(0, (32, 48))]), SIZE, [1])
    assert drawing.notes == ("IMG_GEN_0 was enlarged to 64 x 96, the least that FLUX.2 reads",)
    larger = picture(0, (32, 48)).resize((64, 96), Image.Resampling.LANCZOS)
    assert_same(drawing.images, direct(pipeline, context([larger]), [1]))


def test_an_elongated_reference_is_refused(generator):
    with pytest.raises(ImageError, match="IMG_GEN_0 is 1000 x 64"):
        generator.draw(context([picture(0, (1000, 64))]), SIZE, [1])


def test_steps_are_told_with_previews_that_end_in_the_picture(generator):
    seen = []
    drawing = generator.draw(context(), (96, 64), [1, 2], lambda p: seen.append((p.step, p.steps, p.preview())))
    assert [s[:2] for s in seen] == [(1, 2), (2, 2)]
    assert all(s[2].size == (96, 64) for s in seen)
    difference = np.abs(np.asarray(seen[-1][2], float) - np.asarray(drawing.images[0], float))
    assert difference.max() <= 1


def test_a_listener_that_raises_cancels_between_steps(generator):
    class Interrupt(Exception):
        pass

    steps = []

    def listen(progress):
        steps.append(progress.step)
        raise Interrupt

    before = generator.draw(context(), SIZE, [1]).images
    with pytest.raises(Interrupt):
        generator.draw(context(), SIZE, [1], listen)
    assert steps == [1]
    assert_same(generator.draw(context(), SIZE, [1]).images, before)


def test_seconds_are_told_by_phase(generator):
    drawing = generator.draw(context([picture(0)]), SIZE, [1])
    assert set(drawing.seconds) == {"encode", "draw", "decode"}
    assert all(s > 0 for s in drawing.seconds.values())


@pytest.fixture
def small_device(folder):
    """A generator whose transformer runs out of memory above `holds` images at once."""

    def make(holds):
        generator = Flux2Generator.load(folder)
        forward = generator.pipeline.transformer.forward

        def limited(*args, **kwargs):
            if kwargs["hidden_states"].shape[0] > holds:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(*args, **kwargs)

        generator.pipeline.transformer.forward = limited
        return generator

    return make


def test_out_of_memory_halves_the_batch_and_goes_on(small_device):
    generator = small_device(holds=2)
    seen = []
    drawing = generator.draw(context(), SIZE, [1, 2, 3, 4, 5], seen.append)
    assert len(drawing.images) == 5
    assert drawing.notes == ("out of memory with 5 images at once; drew 2 at once",)
    assert drawing.nfe == generator.nfe(5)
    assert (seen[-1].step, seen[-1].steps) == (6, 6)
    for seed, image in enumerate(drawing.images, 1):
        alone = generator.draw(context(), SIZE, [seed]).images[0]
        assert np.abs(np.asarray(alone, float) - np.asarray(image, float)).max() <= 1
    assert generator.draw(context(), SIZE, [1, 2, 3]).notes == ()


def test_out_of_memory_with_one_image_is_told(small_device):
    with pytest.raises(DeviceMemoryError, match="64 x 64"):
        small_device(holds=0).draw(context(), SIZE, [1, 2])


def test_the_name_tells_model_and_sampling(generator, folder):
    assert generator.name == f"{folder} (2 steps, guidance 4)"
    assert generator.default_size == SIZE


def test_a_generator_keeps_the_port(generator):
    from clvr.ports import Generator

    def accepts(_: Generator) -> None: ...

    accepts(generator)
    assert module.LONGEST_TEXT == 8192


def test_sampling_of_a_folder_is_read(folder):
    data = json.loads((folder / "clvr.json").read_text())
    sampling = Flux2Generator.load(folder).sampling
    assert {**dataclasses.asdict(sampling), "text_encoder_out_layers": [1, 2, 3]} == data
