"""From the names that a user gives to the ports of the loop, and what of that is usable on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import builtin, packages
from .errors import ClvrError, MissingFileError, VLMError, VLMSetupError
from .estimate import Setup
from .jury import Jury, read_threshold
from .past import vlm_name
from .ports import Controller, Size, Verifier

if TYPE_CHECKING:
    from .flux2.generator import Flux2Generator
    from .vlm.chat import ChatClient, Message, Reply

BUILTIN = builtin.NAME
"""The VLM of the built-in world, and its model; a variant of that is 'builtin:VARIANT'."""
TRANSFORMERS = "transformers:"
"""Before the folder or hub id of a VLM that runs in this process."""
AT_ONCE = 4
"""Images that a server is asked about at the same time."""
IN_A_GRAPH = "a MODEL in ComfyUI"
"""In a journal's options: what no command can load."""
KLEIN = {
    "black-forest-labs/FLUX.2-klein-4B": "4 steps, Apache-2.0",
    "black-forest-labs/FLUX.2-klein-base-4B": "28 steps, Apache-2.0",
    "black-forest-labs/FLUX.2-klein-9B": "4 steps, non-commercial",
    "black-forest-labs/FLUX.2-klein-base-9B": "28 steps, non-commercial",
}
START_A_VLM = (
    "Start one, for example `vllm serve Qwen/Qwen3-VL-8B-Instruct`, and add --vlm http://127.0.0.1:8000; "
    "or use --vlm builtin, which knows coloured shapes only."
)


@dataclass(frozen=True)
class Choice:
    """Who draws, plans and judges, as named on the command line. `vlm` is an address, 'builtin', or
    'transformers:' with a folder or hub id; '' means builtin with the built-in model, and CLVR_VLM_URL otherwise.
    `trusted`: the user named the address just now; a key is never sent to one that merely stood in a run's
    folder."""

    model: str = BUILTIN
    vlm: str = ""
    vlm_model: str = ""
    steps: int | None = None
    guidance: float | None = None
    device: str = "auto"
    dtype: str = "auto"
    offload: str = "none"
    judges: tuple[str, ...] = ()
    agreement: str = ""
    judge_threshold: str = ""
    spare_vlm: bool = False
    trusted: bool = True

    def resolved(self) -> Choice:
        """With the VLM filled in, and the threshold read. Raises VLMSetupError where a real model has no VLM,
        SettingError, MissingFileError and FormatError for a threshold."""
        vlm = self.vlm or (BUILTIN if builtin.named(self.model) else os.environ.get("CLVR_VLM_URL", ""))
        if not vlm:
            raise VLMSetupError(f"{self.model} needs a VLM that plans and judges.", START_A_VLM)
        threshold = str(read_threshold(self.judge_threshold)) if self.judge_threshold else ""
        model = self.vlm_model or os.environ.get("CLVR_VLM_MODEL", "")
        return dataclasses.replace(self, vlm=vlm, vlm_model=model, judge_threshold=threshold)

    def options(self) -> dict[str, str]:
        """For the journal's header."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "trusted"}
        fields |= {"judges": "\n".join(self.judges), "spare_vlm": "yes" if self.spare_vlm else ""}
        return {name: str(value) for name, value in fields.items() if value not in (None, "")}

    @classmethod
    def recorded(cls, options: Mapping[str, str]) -> Choice:
        """From a journal's header. The address is trusted where the environment names the same one."""
        texts = {f.name: options[f.name] for f in dataclasses.fields(cls) if f.name in options}
        steps, guidance = texts.pop("steps", None), texts.pop("guidance", None)
        judges, spare = texts.pop("judges", ""), texts.pop("spare_vlm", "")
        return cls(
            **texts,  # type: ignore[arg-type]
            steps=int(steps) if steps else None,
            guidance=float(guidance) if guidance else None,
            judges=tuple(judges.split("\n")) if judges else (),
            spare_vlm=bool(spare),
            trusted=vouched(options.get("vlm", "")),
        )


def load_generator(choice: Choice) -> Flux2Generator:
    """Raises MissingFileError, WeightsError, SettingError, PackageError."""
    packages.require("torch", "transformers", "diffusers")
    from .flux2.generator import Flux2Generator

    return Flux2Generator.load(
        builtin.located(choice.model),
        device=choice.device,
        dtype=choice.dtype,
        offload=choice.offload,
        steps=choice.steps,
        guidance=choice.guidance,
    )


def outline(choice: Choice, size: Size | None = None) -> Setup:
    """Who would draw, plan and judge, without loading or downloading anything. Raises WeightsError, SettingError,
    VLMSetupError, and MissingFileError for a model that is not on this machine."""
    from .flux2 import folder

    model = builtin.located(choice.model)
    found = folder.find(model, download=_from_cache)
    sampling = found.sampling.chosen(choice.steps, choice.guidance)
    size = size or (sampling.width, sampling.height)
    judges = load_judges(choice, open_client=_unloaded)
    return Setup(sampling.named(model), vlm_name(*judges), size, sampling.evaluations(found.distilled))


def _unloaded(choice: Choice) -> ChatClient:
    """A client that has the name of a VLM in this process, and no weights."""
    if not choice.vlm.startswith(TRANSFORMERS):
        return load_client(choice)
    from .vlm.local import model_name

    return _Unloaded(model_name(choice.vlm.removeprefix(TRANSFORMERS)))


@dataclass(frozen=True)
class _Unloaded:
    name: str

    def chat(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, logprobs: bool = False
    ) -> Reply:
        raise VLMSetupError(f"{self.name} is not loaded.", "It is asked during a run only.")


def _from_cache(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
    """Hub files that were downloaded before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(name, allow_patterns=allow_patterns, local_files_only=True)
    except LocalEntryNotFoundError as error:
        if local_files_only:
            raise
        raise MissingFileError(f"{name} is not on this machine yet.", "The first run downloads it.") from error


def load_judges(
    choice: Choice,
    client: ChatClient | None = None,
    open_client: Callable[[Choice], ChatClient] | None = None,
) -> tuple[Controller, Verifier]:
    """`client`: the VLM, where it is open already; `open_client` opens one in the place of `load_client`. Raises
    VLMSetupError for an address that is none; for a VLM in this process MissingFileError, WeightsError,
    SettingError, DeviceMemoryError; and what `Jury.seated` raises."""
    open_client = open_client or load_client
    controller, verifier = _vlm_of(choice, client, open_client)
    jury = Jury(choice.judges, choice.agreement or "majority", choice.judge_threshold, choice.spare_vlm)

    def other(name: str) -> Verifier:
        address, _, model = name.partition("#")
        named = address == choice.vlm or vouched(address)  # a key goes nowhere else
        another = dataclasses.replace(choice, vlm=address, vlm_model=model, trusted=choice.trusted and named)
        return _vlm_of(another, None, open_client)[1]

    return controller, jury.seated(verifier, other, choice.device)


def _vlm_of(
    choice: Choice, client: ChatClient | None, open_client: Callable[[Choice], ChatClient]
) -> tuple[Controller, Verifier]:
    if choice.vlm == BUILTIN:
        from .shapes.controller import ShapesController
        from .shapes.verifier import MeasuringVerifier

        return ShapesController(), MeasuringVerifier()
    from .vlm import VLMController, VLMVerifier

    client = client or open_client(choice)
    at_once = 1 if choice.vlm.startswith(TRANSFORMERS) else AT_ONCE
    return VLMController(client), VLMVerifier(client, logprobs=True, at_once=at_once, compare=True)


def load_client(choice: Choice) -> ChatClient:
    """The VLM itself. Raises as `load_judges`, and PackageError."""
    if choice.vlm.startswith(TRANSFORMERS):
        packages.require("torch", "transformers")
        from .vlm.local import LocalClient

        folder, offload = choice.vlm.removeprefix(TRANSFORMERS), "auto" if choice.offload == "none" else "model"
        return LocalClient.load(folder, device=choice.device, dtype=choice.dtype, offload=offload)
    packages.require("httpx", "pydantic")
    from .vlm import OpenAIClient

    return OpenAIClient(choice.vlm, choice.vlm_model or None, api_key(choice))


def api_key(choice: Choice) -> str | None:
    """From the environment only, and only for an address that the user vouches for."""
    if not choice.trusted:
        return None
    return os.environ.get("CLVR_VLM_API_KEY") or os.environ.get("OPENAI_API_KEY")


def vouched(address: str, by: str | None = None) -> bool:
    """Whether `by`, or else CLVR_VLM_URL, names the same address, be it with or without its version."""
    from .vlm.wire import Address

    named = os.environ.get("CLVR_VLM_URL", "") if by is None else by
    try:
        return Address.parse(address).url == Address.parse(named).url
    except VLMSetupError:
        return False


@dataclass(frozen=True)
class Finding:
    """One line of `clvr models`: what it is, whether it can be used now, where it is or what is missing."""

    name: str
    usable: bool
    detail: str


def survey(vlm: str = "", vlm_model: str = "") -> Iterator[Finding]:
    """What is usable here. Looks at files and installed packages, and asks a VLM server only where one is
    named; nothing is downloaded."""
    yield from _packages()
    for variant in builtin.VARIANTS:
        model = f"{BUILTIN}:{variant}"
        yield _folder(f"model: {model}", builtin.folder(model), f"--model {model}")
    cached = dict(_cached_models())
    for repository, path in cached.items():
        yield _folder(f"model: {repository}", path, f"--model {repository}")
    for repository in (name for name in KLEIN if name not in cached):
        yield Finding(
            f"model: {repository}",
            False,
            f"not in {hub_cache()} ({KLEIN[repository]}); get it with: hf download {repository}",
        )
    yield _vlm(vlm or os.environ.get("CLVR_VLM_URL", ""), vlm_model)


def hub_cache() -> Path:
    """Where Hugging Face keeps downloaded models."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"])
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface"
    return Path(os.environ.get("HF_HOME", home)) / "hub"


def _packages() -> Iterator[Finding]:
    for name in packages.OLDEST:
        lack = packages.lacking(name)
        told = f"{lack}; pip install '{name}>={packages.wanted(name)}'" if lack else packages.version(name)
        yield Finding(f"package: {name}", not lack, told)


def _folder(name: str, path: Path, use: str) -> Finding:
    from .flux2.folder import inspect

    try:
        inspect(path)
    except ClvrError as error:
        return Finding(name, False, str(error))
    return Finding(name, True, f"{path} ({use})")


def _cached_models() -> Iterator[tuple[str, Path]]:
    """Repository and newest snapshot of each FLUX.2 [klein] pipeline in the hub's cache."""
    for index in sorted(hub_cache().glob("models--*/snapshots/*/model_index.json"), key=_changed):
        try:
            kind = json.loads(index.read_text("utf-8")).get("_class_name")
        except (OSError, ValueError, AttributeError):
            continue
        if kind == "Flux2KleinPipeline":
            yield index.parts[-4].removeprefix("models--").replace("--", "/"), index.parent


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _vlm(url: str, model: str) -> Finding:
    if not url:
        return Finding("VLM server", False, "none named; give --vlm http://… or set CLVR_VLM_URL")
    if url.startswith(TRANSFORMERS):
        return _vlm_folder(url)
    from .vlm import ClientSettings, OpenAIClient

    try:
        settings = ClientSettings(connect=3, read=10, retries=0)
        names = OpenAIClient(url, None, api_key(Choice(vlm=url)), settings).models()
    except VLMError as error:
        return Finding(f"VLM server: {url}", False, str(error))
    if model and model not in names:
        return Finding(f"VLM server: {url}", False, f"it has no '{model}', but {', '.join(names) or 'nothing'}")
    return Finding(f"VLM server: {url}", True, ", ".join(names) or "it lists no model; give --vlm-model")


def _vlm_folder(name: str) -> Finding:
    from .vlm.folder import find

    try:
        folder = find(name.removeprefix(TRANSFORMERS), download=_cached_only)
    except ClvrError as error:
        return Finding(f"VLM: {name}", False, str(error))
    return Finding(f"VLM: {name}", True, f"{folder.path} (--vlm {name})")


def _cached_only(name: str, **options: object) -> str:
    raise MissingFileError(f"{name} is not in {hub_cache()}.", f"Get it with: hf download {name}")
