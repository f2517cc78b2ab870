"""The error for what a user can mend; any other ValueError is a bug and keeps its traceback."""

from __future__ import annotations


class BadInput(ValueError):
    """A setting, a file or a word of the command line is wrong; the message names field, value and fix."""

    exit_code = 2
