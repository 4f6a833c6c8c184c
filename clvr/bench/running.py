"""A benchmark's prompts, each a run of the loop in its own folder, some of them at the same time."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Generic, TypeVar

from .. import journal, loop
from ..context import Context
from ..errors import (
    ContextLimitError,
    GrammarError,
    ImageError,
    JournalError,
    VLMConnectionError,
    VLMError,
    VLMSetupError,
)
from ..events import Event
from ..images import decode_image, png_bytes
from ..ports import Drawing, DrawProgress, Generator, Size
from ..report import write_folder
from ..trajectory import Cost, Goal
from .judging import Judge, Judged, in_question_order
from .results import Folder, Result, RunFacts, file_digest, place
from .suite import Item, Suite

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_OWN = (ContextLimitError, GrammarError, ImageError, JournalError, VLMError)
"""What goes wrong with one prompt and leaves the others as they are."""
_ALL = (VLMSetupError, VLMConnectionError)
"""What would go wrong with every prompt."""


@dataclass(frozen=True)
class Drawer:
    """How every prompt is drawn. `ports` makes the parts of one worker."""

    ports: Callable[[], loop.Ports]
    settings: loop.Settings
    seed: int
    options: dict[str, str]

    def item_seed(self, item: Item) -> int:
        digest = hashlib.sha256(f"{self.seed}/{item.id}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


class Shared:
    """One generator for all workers, opened when it is first needed: one drawing at a time."""

    def __init__(self, open_generator: Callable[[], Generator]) -> None:
        self._open = open_generator
        self._opened: Generator | None = None
        self._free = threading.RLock()

    @property
    def _generator(self) -> Generator:
        with self._free:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    @property
    def name(self) -> str:
        return self._generator.name

    @property
    def default_size(self) -> Size:
        return self._generator.default_size

    def nfe(self, images: int) -> int:
        return self._generator.nfe(images)

    def draw(
        self, context: Context, size: Size, seeds: Sequence[int],
        on_step: Callable[[DrawProgress], None] | None = None,
    ) -> Drawing:  # fmt: skip
        with self._free:
            return self._generator.draw(context, size, seeds, on_step)


class PerWorker(Generic[T]):
    """Something that each thread has of its own, such as a client that takes one call at a time."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._local = threading.local()

    def __call__(self) -> T:
        if "value" not in self._local.__dict__:
            self._local.value = self._make()
        return self._local.value


class _HaltedError(Exception):
    """The benchmark ends; runs keep their complete rounds."""


class Bench:
    """`drawer` None: the images are in `images` already. `asked` tells who judges and by which prompts; a verdict of
    another is not kept. `tell` hears of each result as it comes."""

    def __init__(
        self,
        suite: Suite,
        folder: Folder,
        judge: Callable[[], Judge],
        drawer: Drawer | None,
        images: Path,
        asked: str = "",
        tell: Callable[[Result], None] = lambda _: None,
    ) -> None:
        self._suite = suite
        self._folder = folder
        self._judge = PerWorker(judge)
        self._drawer = drawer
        self._ports = PerWorker(drawer.ports) if drawer else None
        self._images = images
        self._asked = asked
        self._tell = tell
        self._halt = threading.Event()

    def run(self, items: Sequence[Item], workers: int = 1) -> list[Result]:
        """A result for each image, and for each prompt that has none, in the items' order. Raises what goes wrong
        with every prompt; what is done by then is kept."""
        with ThreadPoolExecutor(workers, thread_name_prefix="bench") as pool:
            futures = {pool.submit(self._one, item): i for i, item in enumerate(items)}
            found: dict[int, list[Result]] = {}
            try:
                for future in as_completed(futures):
                    found[futures[future]] = future.result()
            except BaseException:
                self._halt.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return [result for i in sorted(found) for result in found[i]]

    def _one(self, item: Item) -> list[Result]:
        if self._halt.is_set():
            raise _HaltedError
        try:
            results = list(self._results(item))
            for result in results:
                self._tell(result)
        except BaseException:
            self._halt.set()
            raise
        return results

    def _results(self, item: Item) -> Iterator[Result]:
        facts, error = self._drawn(item)
        paths = found_images(self._images, item)
        if not paths:
            error = error or f"there is no image {self._images / item.image}"
            yield Result(item.id, item.id, item.prompt, item.tags, run=facts, error=error)
        for number, path in enumerate(paths):
            name = item.id if number == 0 else f"{item.id}-{number + 1}"
            yield self._judged(item, name, path, facts, error)

    def _drawn(self, item: Item) -> tuple[RunFacts | None, str]:
        """Run the prompt's loop to its end and lay out its image. An error is told where it is this prompt's own."""
        if self._drawer is None or self._ports is None:
            return None, ""
        try:
            record = self._proceed(item, self._drawer, self._ports())
            facts = _facts(record)
            trajectory = record.trajectory
            if trajectory.best is not None:
                self._lay_out(item, record.album()[trajectory.best.label])
            return facts, trajectory.stop_reason if facts.unfinished else ""
        except _ALL:
            raise
        except _OWN as error:
            return None, str(error)

    def _proceed(self, item: Item, drawer: Drawer, ports: loop.Ports) -> journal.Record:
        folder = self._folder.run(item.id)
        if (folder / journal.JOURNAL).exists():
            record = journal.read(folder)
            if record.trajectory.stop_reason and not record.resumable:
                if not (folder / "report.html").exists():
                    write_folder(record)
                return record
            self._resume(folder, drawer, ports)
        else:
            self._start(item, folder, drawer, ports)
        record = journal.read(folder)
        if record.trajectory.best is not None:
            write_folder(record)
        return record

    def _start(self, item: Item, folder: Path, drawer: Drawer, ports: loop.Ports) -> None:
        seed = drawer.item_seed(item)
        with journal.Journal.create(folder) as book:
            state = loop.start(Goal(item.prompt), (), ports.controller, drawer.settings, seed, self._listener(None))
            size = drawer.settings.size or ports.generator.default_size
            names = {role: getattr(ports, role).name for role in ("controller", "generator", "verifier")}
            book.begin(journal.Header.of(state, size, names, drawer.options))
            loop.proceed(state, ports, self._listener(book))

    def _resume(self, folder: Path, drawer: Drawer, ports: loop.Ports) -> None:
        book, record = journal.Journal.reopen(folder)
        with book:
            state = loop.State(record.trajectory, record.album(), drawer.settings)
            loop.proceed(state, ports, self._listener(book))

    def _listener(self, book: journal.Journal | None) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            if book is not None:
                book.listen(event)
            if self._halt.is_set():
                raise _HaltedError

        return listen

    def _lay_out(self, item: Item, image: Image) -> None:
        for path, text in item.beside.items():
            place(self._images / path, text.encode())
        place(self._images / item.image, encoded(image, Path(item.image).suffix))

    def _judged(self, item: Item, name: str, path: Path, facts: RunFacts | None, error: str) -> Result:
        data = path.read_bytes()
        digest = file_digest(data, f"{item.digest} {self._asked}")
        before = self._folder.result(name)
        if before and before.digest == digest and before.settled:
            result = dataclasses.replace(before, run=facts, error=error)
        else:
            result = self._ask(item, name, path, data, digest, facts, error)
        if result != before:
            self._folder.keep(result)
        return result

    def _ask(
        self, item: Item, name: str, path: Path, data: bytes, digest: str,
        facts: RunFacts | None, error: str,
    ) -> Result:  # fmt: skip
        judge, began = self._judge(), perf_counter()
        shown = path.relative_to(self._images).as_posix()
        try:
            judged = judge.judge(decode_image(data, str(path)), item)
        except ImageError as damaged:
            judged, error = Judged(dict.fromkeys(m.name for m in self._suite.measures)), str(damaged)
        spent = Cost(seconds={"verify": perf_counter() - began}, usage=judged.usage)
        return Result(
            name, item.id, item.prompt, item.tags, shown, judged.values, item.checks,
            in_question_order(judged.verdict, item.checks), judged.reasons, judge.name, digest, spent, facts, error,
        )  # fmt: skip


def found_images(folder: Path, item: Item) -> list[Path]:
    """The item's images: the one that is expected, whatever its format; and further samples where the layout has a
    folder for them."""
    expected = folder / item.image
    if expected.parent.name == "samples":
        return sorted(p for p in expected.parent.glob("*") if p.suffix.lower() in SUFFIXES and p.stem.isdecimal())
    others = (expected.with_suffix(suffix) for suffix in SUFFIXES)
    return next(([p] for p in (expected, *others) if p.is_file()), [])


def encoded(image: Image, suffix: str) -> bytes:
    """As PNG, or as a JPEG of high quality where the official scorer wants one."""
    if suffix != ".jpg":
        return png_bytes(image)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _facts(record: journal.Record) -> RunFacts:
    trajectory = record.trajectory
    pictures = sum(len(step.candidates) for step in trajectory.steps)
    return RunFacts(len(trajectory.steps), pictures, trajectory.cost, trajectory.stop_reason, record.resumable)
