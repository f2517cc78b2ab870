"""How every command ends: its exit codes, one line for bad input, a traceback for bugs, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

from curate.bad_input import BadInput

DONE, FAILED, BAD, INTERRUPTED = 0, 1, 2, 130
"""Exit codes. FAILED: a bug (with a traceback), or a check that found something; 130 is 128 + SIGINT, as in shells.

So is 143 for SIGTERM, where curation takes it.
"""

EXIT_CODES = "exit codes: 0 done, 1 failed or found something wrong, 2 bad input (one line says what), 130 Ctrl-C"

MENDABLE = (BadInput, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""Errors that are the input's, not the program's: told in one line."""
OBJECT_STORE = {
    "NoCredentialsError": BAD,
    "PartialCredentialsError": BAD,
    "ProfileNotFound": BAD,
    "EndpointConnectionError": FAILED,  # a wrong endpoint, or one that is away for a while
}
"""So are these of botocore, by name, with their exit codes: its import takes longer than a command's help."""


def stop(prog: str, message: str, code: int = BAD) -> NoReturn:
    """Print one line on stderr and end the process; with --debug the traceback of the error comes first."""
    if "--debug" in sys.argv and sys.exc_info()[1] is not None:
        traceback.print_exc()
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"{prog}: {line}", file=sys.stderr)
    sys.exit(code)


class told_in_one_line:
    """Ends the process with one line for an error that the user can mend (2, or its own code), and for Ctrl-C (130).

    `go_on` says after Ctrl-C what to do, `also` names further errors that can be mended. All others are bugs:
    they pass, and Python shows their traceback (1).
    """

    def __init__(self, prog: str, go_on: str, also: tuple[type[Exception], ...] = ()) -> None:
        self._prog, self._go_on, self._mendable = prog, go_on, MENDABLE + also

    def __enter__(self) -> None:
        _ARRIVED.clear()
        here = threading.current_thread() is threading.main_thread()
        self._remembers = here and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._remembers:
            signal.signal(signal.SIGINT, _remember)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._remembers:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if isinstance(error, KeyboardInterrupt):
            number = _ARRIVED[0] if _ARRIVED else signal.SIGINT
            stop(self._prog, f"stopped; {self._go_on}", 128 + number)
        cause = root_cause(error)
        code = self._code(cause)
        if code is not None:
            if "--debug" in sys.argv:
                traceback.print_exception(kind, error, trace)
            stop(self._prog, str(cause), code)

    def _code(self, cause: Any) -> int | None:
        """Return how the process ends for an error that is told in one line, None for others."""
        if isinstance(cause, self._mendable):
            return getattr(cause, "exit_code", BAD)
        of_botocore = type(cause).__module__ == "botocore.exceptions"
        return OBJECT_STORE.get(type(cause).__name__) if of_botocore else None


_ARRIVED: list[int] = []
"""The numbers of the signals that asked this process to stop."""


def heed_ctrl_c() -> None:
    """Raise KeyboardInterrupt where Ctrl-C came before and was lost.

    Python drops an exception that is raised while it runs a destructor or a library's callback, as Ray has many. Long
    work asks here between its parts.
    """
    if _ARRIVED:
        raise KeyboardInterrupt


def heed_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does. For use after Ray has started: its own handler dumps its stack."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _remember)


def _remember(number: int, frame: Any) -> None:
    _ARRIVED.append(number)
    signal.default_int_handler(number, frame)


def root_cause(error: Any) -> Any:
    """Return what a Ray task raised; Ray wraps it once for each task on the way."""
    while getattr(error, "cause", None) is not None:
        error = error.cause
    return error
