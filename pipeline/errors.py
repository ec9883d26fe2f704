"""The exceptions of kesm: each is also the builtin that it stands for, and carries the exit code of the command line.

A message says what was got, what was expected, where, and the way out.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of every error that a user can cause or mend."""

    exit_code = 2


class ConfigError(PipelineError, ValueError):
    """A configuration, option or name is wrong."""


class MissingInputError(PipelineError, FileNotFoundError):
    """A file, folder, label, run or slice that was asked for is not there."""


class ImageFileError(PipelineError, OSError):
    """An image file cannot be decoded, or holds less than it declares."""


class UnsupportedImageError(PipelineError, TypeError):
    """An image file can be decoded, but its pixels are not of a kind that is stored."""


class ShapeMismatchError(PipelineError, ValueError):
    """An array does not have the shape or type of the image that it belongs to."""


class LabelValueError(PipelineError, ValueError):
    """A label file holds values that have no meaning yet."""


class NotAVolumeError(PipelineError, ValueError):
    """A path does not hold an OME-Zarr volume of this program."""


class ExistsError(PipelineError, FileExistsError):
    """Something would be overwritten."""


class RegionError(PipelineError, IndexError):
    """A region lies outside the volume, or is empty."""


class MemoryLimitError(MemoryError, PipelineError):  # in this order: MemoryError makes its own only as the first base
    """The work does not fit the memory that it may use."""


class SchedulerError(PipelineError, ConnectionError):
    """A Dask scheduler cannot be reached or lost all its workers."""


class StorageError(PipelineError, OSError):
    """The disk is full, read-only or not permitted."""


class DamageError(PipelineError, OSError):
    """A stored shard is missing or cannot be decoded."""


class UnavailableError(PipelineError, ConnectionError):
    """The storage has not answered, also when it was asked again."""


class LockedError(PipelineError, TimeoutError):
    """Another process works on the same thing."""

    exit_code = 4


class TargetError(PipelineError, RuntimeError):
    """A function of the user's own raised, or returned what it must not; ``trace`` is its traceback."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace
