"""python native_comfy_worker.py COMFYUI KLEIN TWIN OUT: the native nodes over ComfyUI's own MODEL, CLIP and VAE.

KLEIN is a small klein folder, TWIN its transformer in BFL's format. Writes what was measured to OUT/measured.json
and pictures beside it. Runs in a process of its own: ComfyUI's top-level names and arguments stay there."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

SIZE = (96, 64)
SEEDS = (5, 2**52 + 1)
STEPS, GUIDANCE = 3, 4.0
TEXT = "two red circles above a blue square"


def context(*references: Any, text: str = TEXT) -> Any:
    """A context of two rounds. `references`: labels and pictures."""
    module = import_module("pack.clvr.context")
    return module.Context(text, (module.Turn(0, "draw", "IMG_GEN_0"), module.Turn(1, "move")), references)


def pictures() -> list[tuple[str, Any]]:
    """Two references of noise; the second has to be cropped to whole tokens."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    sizes = {"IMG_REF_0": (64, 64), "IMG_GEN_0": (100, 84)}
    return [(k, Image.fromarray(random.integers(0, 255, (h, w, 3), dtype=np.uint8))) for k, (w, h) in sizes.items()]


class Lab:
    """The models, the nodes, and where the pictures go."""

    def __init__(self, klein: Path, twin: Path, out: Path) -> None:
        from tiny_pack import parts

        self.klein, self.twin, self.out = klein, twin, out
        self.model = parts.model(twin)
        self.clip, self.vae = parts.clip(klein), parts.vae(klein)
        self.native = import_module("pack.nodes.native_generator")

    def generator(self, steps: int = STEPS, guidance: float = 1.0, model: Any = None, **more: Any) -> Any:
        sampling = self.native.Sampling(steps, guidance, **more)
        return self.native.NativeGenerator(model or self.model, self.clip, self.vae, sampling)

    def save(self, name: str, images: Any) -> None:
        for k, image in enumerate(images):
            image.save(self.out / f"{name}_{k}.png")

    @contextmanager
    def counted(self) -> Iterator[dict[str, int]]:
        """How often the encoders run."""
        made = {"texts": 0, "references": 0}
        text, image = self.clip.encode_from_tokens_scheduled, self.vae.encode

        def encode_text(*args: Any, **kwargs: Any) -> Any:
            made["texts"] += 1
            return text(*args, **kwargs)

        def encode_image(*args: Any, **kwargs: Any) -> Any:
            made["references"] += 1
            return image(*args, **kwargs)

        with (
            patch.object(self.clip, "encode_from_tokens_scheduled", encode_text),
            patch.object(self.vae, "encode", encode_image),
        ):
            yield made


def same(one: Any, other: Any) -> bool:
    return [image.tobytes() for image in one] == [image.tobytes() for image in other]


def parity(lab: Lab) -> Any:
    """Drawings of which the diffusers generator makes the same."""
    given = pictures()
    lab.save("reference", [image for _, image in given])
    guided = lab.generator(guidance=GUIDANCE).draw(context(*given), SIZE, SEEDS)
    lab.save("guided", guided.images)
    long = lab.generator().draw(context(text=long_text(lab)), (64, 64), SEEDS[:1])
    lab.save("long", long.images)
    (lab.out / "long.txt").write_text(long_text(lab))
    return {"notes": guided.notes + long.notes}


def long_text(lab: Lab) -> str:
    """A goal with which the context takes a multiple of 8 tokens, as diffusers pads beyond 512."""
    klein = import_module("pack.nodes.klein")
    words = "red circle " * 400
    while klein.count_tokens(lab.clip, context(text=words).text) % 8:
        words += "blue "
    return words.strip()


def batches(lab: Lab) -> Any:
    import comfy.sample
    import torch

    generator = lab.generator()
    both = generator.draw(context(), (64, 64), SEEDS)
    alone = [generator.draw(context(), (64, 64), [seed]).images[0] for seed in SEEDS]
    noise = lab.native.noise(torch.zeros(1, 128, 4, 4), SEEDS)
    single = [comfy.sample.prepare_noise(noise[:1], seed) for seed in SEEDS]
    ancestral = lab.generator(sampler="euler_ancestral")
    mixed = ancestral.draw(context(), (64, 64), SEEDS).images
    apart = [ancestral.draw(context(), (64, 64), [seed]).images[0] for seed in SEEDS]
    lab.save("batch", both.images)
    lab.save("alone", alone)
    return {
        "noise": all(bool((noise[k] == single[k][0]).all()) for k in range(2)),
        "different": not same(both.images[:1], both.images[1:]),
        "ancestral": same(mixed, apart),
    }


def memory(lab: Lab) -> Any:
    """Batches when ComfyUI's estimate or the device says that not all fit."""
    import torch

    generator = lab.generator(steps=2)
    want = generator.draw(context(), (64, 64), (1, 2, 3)).images
    found = import_module("pack.nodes.klein").conditions(lab.clip, lab.vae, context(), False)
    need = {n: generator._memory(found, (64, 64), n) for n in (1, 2, 3)}
    seen: list[int] = []
    sample = generator._sample

    def watched(current: Any, seeds: Any) -> Any:
        seen.append(len(seeds))
        if len(seeds) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sample(current, seeds)

    told, limit = [], 9
    with patch.object(generator, "_sample", watched), patch.object(lab.native, "_room", lambda model: need[2]):
        estimated = generator.draw(context(), (64, 64), (1, 2, 3), lambda p: told.append((p.step, p.steps)))
    sizes, limit = list(seen), 1
    seen.clear()
    with patch.object(generator, "_sample", watched):
        forced = generator.draw(context(), (64, 64), (1, 2, 3))
    return {
        "estimated": sizes,
        "progress": told,
        "forced": list(seen),
        "notes": forced.notes,
        "close": [close(a, b) for a, b in zip(want * 2, estimated.images + forced.images, strict=True)],
    }


def close(one: Any, other: Any) -> int:
    """The largest difference of two pictures."""
    from PIL import ImageChops

    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def order(lab: Lab) -> Any:
    generator, given = lab.generator(), pictures()
    drawn = [generator.draw(context(*images), (64, 64), [1]).images for images in (given, given[::-1], [])]
    return {"order": not same(drawn[0], drawn[1]), "presence": not same(drawn[0], drawn[2])}


def caching(lab: Lab) -> Any:
    given, counts, klein = pictures(), [], import_module("pack.nodes.klein")
    klein._texts.clear()
    klein._references.clear()
    generator = lab.generator(steps=1, guidance=GUIDANCE)
    rounds = [
        context(*given, text="one"),
        context(*given, text="one"),
        context(*given[::-1], text="two"),
        context(given[0], text="one"),
    ]
    with lab.counted() as made:
        for each in rounds:
            before = dict(made)
            generator.draw(each, (64, 64), [1])
            counts.append([made[k] - before[k] for k in made])
        before = dict(made)
        lab.generator(steps=1).draw(rounds[0], (64, 64), [1])
        counts.append([made[k] - before[k] for k in made])
        before = dict(made)
        for k in range(9):
            generator.draw(context(text=f"text {k}"), (64, 64), [1])
        generator.draw(rounds[0], (64, 64), [1])
        counts.append([made[k] - before[k] for k in made])
    return {"counts": counts}


def long_traces(lab: Lab) -> Any:
    """A trace beyond the limit, and one that cannot be shortened."""
    module, klein = import_module("pack.clvr.context"), import_module("pack.nodes.klein")
    turns = [module.Turn(k, "red " * 100, f"IMG_GEN_{k}") for k in range(8)]
    trace = module.Context(TEXT, (*turns, module.Turn(8, "move")), ())
    with patch.object(klein, "LONGEST_TEXT", 600):
        found = klein.conditions(lab.clip, lab.vae, trace, False)
        length = found.positive[0][0].shape[1]
        failed = raised(lambda: klein.conditions(lab.clip, lab.vae, context(text="red " * 700), False))
    whole = klein.conditions(lab.clip, lab.vae, trace, False)
    return {
        "notes": found.notes,
        "length": length,
        "failed": failed,
        "whole": [whole.positive[0][0].shape[1], len(whole.notes)],
        "counted": klein.count_tokens(lab.clip, trace.text),
    }


def raised(call: Callable[[], Any]) -> list[str]:
    try:
        call()
    except BaseException as error:  # ComfyUI's interrupt is no Exception
        return [type(error).__name__, str(error)]
    return []


def evaluations(lab: Lab) -> Any:
    """[counted, foretold before, foretold after] for two images, by kind of sampling."""
    kinds = {
        "distilled": lab.generator(4, 1.0),
        "base": lab.generator(28, 4.0),
        "heun": lab.generator(3, 1.0, sampler="heun"),
    }
    found = {}
    for name, generator in kinds.items():
        before = generator.nfe(2)
        found[name] = [generator.draw(context(), (32, 32), SEEDS).nfe, before, generator.nfe(2)]
    return found


def interrupt(lab: Lab) -> Any:
    """Seconds from ComfyUI's interrupt to the end of a drawing that would take minutes, and what it raised."""
    import comfy.model_management

    generator = lab.generator(steps=2000)
    asked: list[float] = []

    def ask() -> None:
        asked.append(time.monotonic())
        comfy.model_management.interrupt_current_processing()

    def on_step(progress: Any) -> None:
        if progress.step == 2:
            threading.Thread(target=ask).start()

    failed = raised(lambda: generator.draw(context(), (64, 64), [1], on_step))
    seconds = time.monotonic() - asked[0]
    cancelled = import_module("pack.clvr.errors").Cancelled

    def give_up(progress: Any) -> None:
        raise cancelled("enough")

    return {
        "seconds": seconds,
        "failed": failed[:1],
        "cancelled": raised(lambda: generator.draw(context(), (64, 64), [1], give_up))[:1],
        "after": len(lab.generator(steps=1).draw(context(), (64, 64), [1]).images),
    }


def patched_models(lab: Lab) -> Any:
    """fp8 weights, and a LoRA on the model against the same LoRA merged into the weights."""
    import comfy.sd
    import torch
    from comfy.weight_adapter.lora import LoRAAdapter
    from safetensors.torch import load_file
    from tiny_pack import parts

    plain = lab.generator().draw(context(), (64, 64), [1]).images
    small = comfy.sd.load_diffusion_model(str(lab.twin), model_options={"dtype": torch.float8_e4m3fn})
    fp8 = lab.generator(model=small).draw(context(), (64, 64), [1]).images
    key = "double_blocks.0.img_attn.qkv.weight"
    weights = load_file(lab.twin)
    random = torch.Generator().manual_seed(0)
    up = torch.randn(weights[key].shape[0], 4, generator=random) * 0.1
    down = torch.randn(4, weights[key].shape[1], generator=random) * 0.1
    with_lora = lab.model.clone()
    with_lora.add_patches({f"diffusion_model.{key}": LoRAAdapter(set(), (up, down, None, None, None, None))}, 1.0)
    lora = lab.generator(model=with_lora).draw(context(), (64, 64), [1]).images
    again = lab.generator().draw(context(), (64, 64), [1]).images
    whole = {name: tensor.float() for name, tensor in weights.items()}
    whole[key] = whole[key] + up @ down
    merged = lab.generator(model=parts.loaded(whole)).draw(context(), (64, 64), [1]).images
    return {
        "fp8": [str(small.model.diffusion_model.double_blocks[0].img_attn.qkv.weight.dtype), close(plain[0], fp8[0])],
        "lora": close(plain[0], lora[0]),
        "merged": close(lora[0], merged[0]),
        "unchanged": same(plain, again),
    }


def mistakes(lab: Lab) -> Any:
    """What each wrong connection says."""
    import torch

    class Wrong:
        latent_channels = 4

    class Model:
        model = torch.nn.Linear(1, 1)

    draw = lab.generator().draw
    wrong_vae = lab.native.NativeGenerator(lab.model, lab.clip, Wrong(), lab.native.Sampling(1, 1.0))
    config = lab.model.model.model_config.unet_config
    with patch.dict(config, context_in_dim=7680):
        clip = raised(lambda: draw(context(), (64, 64), [1]))
    return {
        "model": raised(lambda: lab.generator(model=Model())),
        "clip": clip,
        "vae": raised(lambda: wrong_vae.draw(context(), (64, 64), [1])),
        "size": raised(lambda: draw(context(), (60, 64), [1])),
    }


def graphs(lab: Lab) -> Any:
    """The step as the native generator draws it, and as ComfyUI's own nodes draw it from CLVRConditioning."""
    from comfy_extras import nodes_custom_sampler as custom
    from comfy_extras.nodes_flux import Flux2Scheduler

    import nodes

    to_pictures, found = import_module("pack.nodes.pixels").to_pictures, {}
    for mode, steps, cfg in (("distilled", 4, 1.0), ("base", 6, 4.0)):
        run = planned(lab, rounds=1)
        _, positive, negative, latent, noise, seed, width, height, _ = conditioned(lab, run)
        native = lab.generator(steps, cfg)
        drawn = native.draw(built(run.state), (width, height), noise.seeds)
        guider = custom.CFGGuider.execute(lab.model, positive, negative, cfg)[0]
        sigmas = Flux2Scheduler.execute(steps, width, height)[0]
        sampler = custom.KSamplerSelect.execute("euler")[0]
        samples = custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent)[0]
        images = nodes.VAEDecode().decode(lab.vae, samples)[0]
        found[mode] = same(drawn.images, to_pictures(images))
        one = {"samples": latent["samples"][:1]}
        stock = nodes.KSampler().sample(lab.model, seed, steps, cfg, "euler", "simple", positive, negative, one)[0]
        images = nodes.VAEDecode().decode(lab.vae, stock)[0]
        simple = lab.generator(steps, cfg, scheduler="simple").draw(built(run.state), (width, height), [seed])
        found[f"{mode} KSampler"] = same(simple.images, to_pictures(images))
    return found


def planned(lab: Lab, rounds: int) -> Any:
    """A run of the built-in judges with `rounds` drawings behind it and the next one planned."""
    loop = import_module("pack.clvr.loop")
    controller, verifier = judges()
    budget = import_module("pack.clvr.budget").Budget(steps=4, candidates=2)
    settings = loop.Settings(budget, size=(64, 64))
    goal = import_module("pack.clvr.trajectory").Goal(TEXT)
    state = loop.start(goal, [], controller, settings, 7)
    generator = lab.generator(2)
    for _ in range(rounds):
        state = loop.verify(loop.draw(loop.plan(state, controller), generator), verifier)
    run = import_module("pack.nodes.sockets").Run(loop.plan(state, controller))
    assert loop.awaits_drawing(run.state)
    return run


def judges() -> tuple[Any, Any]:
    models = import_module("pack.clvr.models")
    return models.load_judges(models.Choice(vlm="builtin"))


def built(state: Any) -> Any:
    build = import_module("pack.clvr.context").build
    return build(state.trajectory, state.pending.decision, state.album)


def conditioned(lab: Lab, run: Any) -> tuple[Any, ...]:
    return import_module("pack.nodes.conditioning").CLVRConditioning.execute(run, lab.clip, lab.vae).result


def own_graph(lab: Lab) -> Any:
    """A loop whose rounds are drawn from CLVRConditioning and handed back, against the native generator's."""
    import dataclasses

    loop, module = import_module("pack.clvr.loop"), import_module("pack.nodes.conditioning")
    trajectory = import_module("pack.clvr.trajectory")
    pixels, ports = import_module("pack.nodes.pixels"), import_module("pack.clvr.ports")
    controller, verifier = judges()
    generator = lab.generator(2)
    settings = loop.Settings(import_module("pack.clvr.budget").Budget(steps=3, candidates=2), size=(64, 64))
    begun = loop.start(trajectory.Goal(TEXT), [], controller, settings, 7)
    whole = loop.proceed(begun, loop.Ports(controller, generator, verifier))
    run = import_module("pack.nodes.sockets").Run(begun)
    while not loop.stopped(run.state):
        run = dataclasses.replace(run, state=loop.plan(run.state, controller))
        run, *outputs = conditioned(lab, run)
        images = generator.draw(built(run.state), (64, 64), outputs[3].seeds).images
        drawing = ports.Drawing(tuple(pixels.to_pictures(pixels.to_tensor(images))), 4)
        state = loop.receive(run.state, drawing)
        run = dataclasses.replace(run, state=loop.verify(state, verifier))
    done = loop.finish(run.state)
    blocked = conditioned(lab, module.Run(done))
    return {
        "steps": len(whole.trajectory.steps),
        "same": without_seconds(whole.trajectory) == without_seconds(done.trajectory),
        "images": [done.album[k].tobytes() == whole.album[k].tobytes() for k in whole.album],
        "blocked": [type(b).__name__ for b in blocked[1:]],
        "outputs": len(module.CLVRConditioning.GET_SCHEMA().outputs),
    }


def without_seconds(trajectory: Any) -> str:
    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if k != "seconds"}
        return [clean(v) for v in value] if isinstance(value, list) else value

    return json.dumps(clean(trajectory.to_dict()), sort_keys=True)


def closed_loop(lab: Lab) -> Any:
    """A whole run with the native generator, at the built-in model's padding."""
    loop, trajectory = import_module("pack.clvr.loop"), import_module("pack.clvr.trajectory")
    controller, verifier = judges()
    budget = import_module("pack.clvr.budget").Budget(steps=3, candidates=2)
    told: list[str] = []
    ports = loop.Ports(controller, lab.generator(4), verifier)
    settings = loop.Settings(budget, size=(64, 64))
    state = loop.run(trajectory.Goal(TEXT), [], ports, settings, 3, lambda e: told.append(type(e).__name__))
    done = state.trajectory
    references = [s.decision.references for s in done.steps]
    return {
        "steps": len(done.steps),
        "nfe": done.cost.nfe,
        "references": references,
        "stop": done.stop_reason,
        "previews": told.count("Drawing"),
        "seconds": sorted(done.steps[-1].cost.seconds),
    }


def registered() -> Any:
    """What the nodes say of themselves, before they run and when they run, with nothing connected."""
    native = import_module("pack.nodes.native").CLVRGeneratorNative
    conditioning = import_module("pack.nodes.conditioning").CLVRConditioning
    return {
        "described": [node.GET_SCHEMA().description for node in (native, conditioning)],
        "validated": [native.validate_inputs(mode) for mode in ("base", "nonsense")],
        "executed": [
            raised(lambda: native.execute(None, None, None, "base", 4, 1.0)),
            raised(lambda: conditioning.execute(None, None, None)),
        ],
    }


CHECKS = (parity, batches, memory, order, caching, long_traces, evaluations, interrupt, patched_models, mistakes,
          graphs, own_graph, closed_loop)  # fmt: skip


def main(comfy_folder: str, klein: str, twin: str, out: str) -> None:
    from merge_comfy_worker import start

    start(comfy_folder)
    import torch

    measured: dict[str, Any] = {"registered": registered()}
    if klein:
        lab = Lab(Path(klein), Path(twin), Path(out))
        with torch.inference_mode():
            for check in CHECKS:
                began = time.monotonic()
                measured[check.__name__] = check(lab)
                print(f"{check.__name__} {time.monotonic() - began:.1f} s", flush=True)
    (Path(out) / "measured.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    main(*sys.argv[1:])
