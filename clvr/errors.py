"""One class a mistake. Each subclasses the builtin that it mirrors and says the thing and the remedy."""

from __future__ import annotations


class ClvrError(Exception):
    """Base of every error that a user can cause and mend. `str()` is one message: the thing, then the remedy."""

    def __init__(self, thing: str, remedy: str = "") -> None:
        self.thing = thing
        self.remedy = remedy
        super().__init__(f"{thing} {remedy}".strip())


class GrammarError(ClvrError, ValueError):
    """A prompt lies outside the built-in world's grammar."""


class BudgetError(ClvrError, ValueError):
    """A thinking budget cannot be parsed or leaves no room for a single step."""


class WeightsError(ClvrError, ValueError):
    """A weight file or model folder is truncated, of the wrong architecture, or of a refused format."""


class MissingFileError(ClvrError, FileNotFoundError):
    """A file or folder that was named is not there."""


class SettingError(ClvrError, ValueError):
    """A setting has a value that cannot work: a size, a device, a number format."""


class OutputError(ClvrError, OSError):
    """A file cannot be written: it is there already, is one of the inputs, or the disk is full."""


class DeviceMemoryError(ClvrError, MemoryError):
    """The device has too little memory even for a single image."""


class HostError(ClvrError, RuntimeError):
    """The program that the pack runs in is too old for a part of it."""


class PackageError(ClvrError, ImportError):
    """A package that is needed is not installed, or too old."""


class ImageError(ClvrError, ValueError):
    """An image cannot be read, or is larger than is safe to read."""


class RunFolderError(ClvrError, OSError):
    """A run's folder cannot be written, or already holds another run."""


class RunLockedError(RunFolderError):
    """Another process is writing into the same run's folder."""


class JournalError(ClvrError, ValueError):
    """A journal is damaged at a place that cannot be repaired by dropping its last line."""


class FormatError(ClvrError, ValueError):
    """A trajectory, reply or export does not have the form that its version promises."""


class VLMError(ClvrError, RuntimeError):
    """A VLM could not be asked, or answered nothing usable after the repair."""


class VLMSetupError(VLMError, ValueError):
    """A VLM cannot be asked as it was named: a wrong address, a refused key, an unknown model."""


class VLMConnectionError(VLMError, ConnectionError):
    """The VLM's server does not answer at its address."""


class VLMTimeoutError(VLMError, TimeoutError):
    """The VLM's server did not answer in time."""


class ReplyError(VLMError, ValueError):
    """A VLM's reply could not be parsed, nor could the repaired one."""


class ContextLimitError(ClvrError, ValueError):
    """Even the goal, the newest reasoning and the chosen references do not fit an encoder's limit."""


class Cancelled(ClvrError, RuntimeError):
    """A listener asked to stop in the middle of a call. What was complete before stays."""


class DivergedError(ClvrError, ArithmeticError):
    """A training's loss or gradient is no longer a finite number."""
