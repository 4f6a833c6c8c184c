"""Klein for training computes what Flux2KleinPipeline computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from safetensors.torch import load_file

from clvr.errors import SettingError
from clvr.flux2.limits import scaled
from training import klein as module
from training.klein import Klein, Latents, lora_targets, position_ids, sample, shifted, velocity

from . import tiny_klein

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_klein.make(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="module")
def klein(folder):
    return Klein.open(folder, CPU)


@pytest.fixture(scope="module")
def pipeline(folder):
    made = Flux2KleinPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def picture(seed, size=(64, 64)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def noise_of(seed, height, width):
    grid = torch.randn((1, 128, height, width), generator=torch.Generator().manual_seed(seed))
    return Latents(grid.flatten(2).mT.contiguous(), height, width)


def forward_of(pipeline, monkeypatch, **arguments):
    """What the pipeline gives its transformer at the first step, and what comes out."""
    calls = []
    inner = pipeline.transformer.forward

    def spy(**kwargs):
        out = inner(**kwargs)
        calls.append((kwargs, out[0]))
        return out

    monkeypatch.setattr(pipeline.transformer, "forward", spy)
    pipeline(
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=64,
        text_encoder_out_layers=tiny_klein.OUT_LAYERS,
        output_type="latent",
        **arguments,
    )
    return calls[0]


@pytest.mark.parametrize("sizes", [[], [(64, 64)], [(96, 64), (64, 112)]])
def test_velocity_equals_the_pipelines_forward(klein, pipeline, monkeypatch, sizes):
    images = [picture(i, size) for i, size in enumerate(sizes)]
    kwargs, out = forward_of(
        pipeline,
        monkeypatch,
        prompt="a red circle",
        image=images or None,
        width=96,
        height=48,
        generator=torch.Generator().manual_seed(3),
    )
    noise = noise_of(3, 3, 6)
    context = klein.encoders.encode_text(["a red circle"])
    references = [klein.encoders.encode_images([image]) for image in images]
    with torch.no_grad():
        ours = klein.velocity(noise, kwargs["timestep"], context, references)
    torch.testing.assert_close(ours, out[:, : noise.tokens.shape[1]], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(context.states, kwargs["encoder_hidden_states"], rtol=1e-5, atol=1e-6)
    text, image = position_ids(noise, references, 64, CPU)
    assert torch.equal(image, kwargs["img_ids"][0])
    assert torch.equal(text, kwargs["txt_ids"][0])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_samples_equal_the_pipelines_pictures(klein, pipeline, guidance):
    reference = picture(1, (80, 64))
    drawn = pipeline(
        prompt="two blue squares",
        image=[reference],
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(9),
        max_sequence_length=64,
        text_encoder_out_layers=tiny_klein.OUT_LAYERS,
    ).images[0]
    text, negative = (klein.encoders.encode_text([t], 64) for t in ("two blue squares", ""))
    references = [klein.encoders.encode_images([reference])]
    levels = klein.sigmas(3, 16)
    x = sample(klein.transformer, noise_of(9, 4, 4), levels, text, references, guidance, negative)
    ours = klein.encoders.decode(x)[0]
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(drawn)).max() <= 1


def test_a_batch_equals_its_rows(klein):
    texts = ["a red circle", "a much longer text about two blue squares"]
    noise = noise_of(1, 4, 4)
    both = noise.like(torch.cat([noise.tokens, noise_of(2, 4, 4).tokens]))
    t = torch.tensor([0.9, 0.3])
    reference = klein.encoders.encode_images([picture(0), picture(1)])
    with torch.no_grad():
        batch = klein.velocity(both, t, klein.encoders.encode_text(texts, 80), [reference])
        for n, text in enumerate(texts):
            row = both.like(both.tokens[n : n + 1])
            one = reference.like(reference.tokens[n : n + 1])
            alone = klein.velocity(row, t[n : n + 1], klein.encoders.encode_text([text], 80), [one])
            torch.testing.assert_close(batch[n : n + 1], alone, rtol=1e-4, atol=1e-5)


def test_masked_padding_is_not_read(klein):
    noise, t = noise_of(1, 4, 4), torch.tensor([0.5])
    context = klein.encoders.encode_text(["a red circle"])
    other = context.states + torch.randn_like(context.states) * ~context.mask[..., None]
    changed = module.TextContext(other, context.mask)
    with torch.no_grad():
        masked = [velocity(klein.transformer, noise, t, c, mask_padding=True) for c in (context, changed)]
        plain = [velocity(klein.transformer, noise, t, c) for c in (context, changed)]
    torch.testing.assert_close(*masked)
    assert not torch.allclose(*plain)


def test_texts_pad_to_where_the_generator_pads_and_too_long_ones_are_refused(klein):
    long = "a" * 100
    assert klein.encoders.lengths(["a", long]) == [64, 128]
    assert klein.encoders.encode_text([long]).states.shape[1] == 128
    with pytest.raises(SettingError, match="tokens"):
        klein.encoders.encode_text([long], 64)


def test_pictures_of_several_sizes_are_refused(klein):
    with pytest.raises(SettingError, match="64 x 64"):
        klein.encoders.encode_images([picture(0), picture(0, (80, 64))])
    with pytest.raises(SettingError, match="70 x 64"):
        klein.encoders.encode_images([picture(0, (70, 64))])
    assert klein.encoders.encode_images([scaled(picture(0, (70, 64)))]).width == 4


def test_shifted_times_are_the_samplers_schedule(klein):
    steps, tokens = 8, 1024
    uniform = torch.linspace(1.0, 1 / steps, steps)
    torch.testing.assert_close(shifted(uniform, steps, tokens), klein.sigmas(steps, tokens)[:-1], rtol=1e-5, atol=1e-6)


def test_loaded_weights_are_the_files(klein, folder):
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert tensors.keys() == klein.transformer.state_dict().keys()
    assert all(torch.equal(v, tensors[k]) for k, v in klein.transformer.state_dict().items())


def test_lora_reaches_every_matrix_of_the_blocks(klein):
    names = lora_targets(klein.transformer)
    kinds = {name.split(".", 2)[2] for name in names}
    assert {
        "attn.to_q",
        "attn.add_q_proj",
        "attn.to_out.0",
        "attn.to_out",
        "ff.linear_in",
        "ff_context.linear_out",
    } <= kinds
