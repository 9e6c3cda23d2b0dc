"""The errors a user can cause: the command line prints them without a traceback."""

from __future__ import annotations

#: The exit status of a command that could not do its work, or has found something wrong.
EXIT_FAILURE = 1


class UsageError(ValueError):
    """Something asked for cannot be done as asked. The message says what was expected and what was found."""


class MissingFileError(UsageError, FileNotFoundError):
    """A file that the command needs is not there. The message names the path and what is needed."""


class OutputExistsError(UsageError, FileExistsError):
    """The output directory already holds something that would be overwritten."""


class Interrupted(Exception):
    """The user asked to stop and the run was put away in good order; the message says where."""


class ElsewhereError(UsageError):
    """Of several processes, another has failed and says why; this one ends with it, without saying it once more."""


class LostProcessError(RuntimeError):
    """Of several processes, another has ended, and this one cannot go on without it."""
