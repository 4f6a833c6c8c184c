"""The seams. A controller plans, a generator draws, a verifier judges, a teacher distils. Nothing else crosses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .trajectory import Brief, Check, Decision, Evidence, Goal, Trajectory, Usage, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

    from .context import Context

Size = tuple[int, int]
"""Width, height in pixels."""


class Album(Mapping[str, "Image"]):
    """Images of a run by label, as RGB PIL images. Immutable: `with_image` gives a new one."""

    def __init__(self, images: Mapping[str, Image] | None = None) -> None:
        self._images = dict(images or {})

    def __getitem__(self, label: str) -> Image:
        return self._images[label]

    def __iter__(self):  # noqa: ANN204
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def with_image(self, label: str, image: Image) -> Album:
        return Album({**self._images, label: image})


@dataclass(frozen=True)
class Checklist:
    """A goal's checks, and what making them cost. `raw` is the VLM's reply where there was one; `notes` tell what
    had to be changed in it."""

    checks: tuple[Check, ...]
    usage: Usage = Usage()
    raw: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DrawProgress:
    """One denoising step done. `preview` renders the picture so far; call it only when it will be shown."""

    step: int
    steps: int
    preview: Callable[[], Image] | None = None


@dataclass(frozen=True)
class Drawing:
    """Images (one per seed) and what they cost: NFE over all images, seconds by phase (encode, draw, decode).

    `notes` names what had to be left out of the context."""

    images: tuple[Image, ...]
    nfe: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


NO_BRIEF = Brief()


class Controller(Protocol):
    """Plans. `name` goes into the journal."""

    @property
    def name(self) -> str: ...

    def checklist(self, goal: Goal, images: Album) -> Checklist:
        """Atomic checks for the goal. Raises VLMError or GrammarError where none can be made."""
        ...

    def decide(self, trajectory: Trajectory, images: Album, brief: Brief = NO_BRIEF) -> Decision:
        """The next decision, given everything so far and what the policy asks for. `references` must be labels
        that are in `images`."""
        ...


class Generator(Protocol):
    """Draws one image per seed, conditioned on the context."""

    @property
    def name(self) -> str: ...

    @property
    def default_size(self) -> Size: ...

    def nfe(self, images: int) -> int:
        """Function evaluations that drawing this many images will take."""
        ...

    def draw(
        self,
        context: Context,
        size: Size,
        seeds: Sequence[int],
        on_step: Callable[[DrawProgress], None] | None = None,
    ) -> Drawing:
        """Whatever `on_step` raises ends the drawing and passes through."""
        ...


class Verifier(Protocol):
    """Judges one image against checks. `references` are the images that the step was drawn from."""

    @property
    def name(self) -> str: ...

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image] = ()) -> Verdict:
        """One result per check. What cannot be judged is `unjudged`; only a broken set-up raises."""
        ...


@runtime_checkable
class Crowded(Protocol):
    """A verifier that may be asked about several images at the same time, from several threads."""

    @property
    def at_once(self) -> int: ...


def at_once(verifier: Verifier) -> int:
    """How many images it may be asked about at the same time."""
    return verifier.at_once if isinstance(verifier, Crowded) else 1


@dataclass(frozen=True)
class Preference:
    """Which of two images satisfies a goal better. `first`: the probability in [0, 1] that it is the first; 0.5
    is a tie, None unjudged."""

    first: float | None
    usage: Usage = Usage()
    evidence: tuple[Evidence, ...] = ()
    raw: str = ""


class Comparer(Protocol):
    """Judges two images against each other, which is more reliable than scoring each alone."""

    @property
    def name(self) -> str: ...

    def prefer(self, first: Image, second: Image, goal: Goal, references: Sequence[Image] = ()) -> Preference:
        """Asked in both orders: an answer that changes with the order is a tie. `references` are the user's
        images. A failed call is unjudged; only a broken set-up raises."""
        ...


@runtime_checkable
class Comparing(Protocol):
    """A verifier that brings along who compares two images."""

    @property
    def comparer(self) -> Comparer | None: ...


def comparer(verifier: Verifier) -> Comparer | None:
    return verifier.comparer if isinstance(verifier, Comparing) else None


@dataclass(frozen=True)
class Proxy:
    """A context distilled for a reward model (eq. 2): scene description, edit instruction, reference labels."""

    t2i: str
    i2i: str = ""
    references: tuple[str, ...] = ()
    usage: Usage = Usage()


class Teacher(Protocol):
    """Distils a context into proxy prompts (eq. 2)."""

    def proxy(self, context: Context) -> Proxy: ...


@runtime_checkable
class Keeper(Protocol):
    """Whatever keeps something in memory from one call of a run to the next."""

    def release(self) -> None:
        """The run is over: drop it."""
        ...


def release(*held: object) -> None:
    """End of a run for those of these that keep something."""
    for one in held:
        if isinstance(one, Keeper):
            one.release()
