"""How a command ends: one line and 2 for bad input, 130 for Ctrl-C, a traceback for a bug."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from curate.bad_input import BadInput
from curate.command_line import heed_ctrl_c, told_in_one_line

COMMAND = """
import sys
from curate.command_line import told_in_one_line

class Wrapped(Exception):
    cause = None

wrapped = Wrapped()
wrapped.cause = {error}
with told_in_one_line("x", "run it again"):
    raise wrapped
"""


def run(error: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Raise an error as Ray hands it on, in a process of its own."""
    code = "from curate.bad_input import BadInput\n" + COMMAND.format(error=error)
    return subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, check=False)


def test_bad_input_is_one_line_and_2():
    done = run("BadInput('steps = 0:\\n  must be 1 or more')")
    assert (done.returncode, done.stderr) == (2, "x: steps = 0:; must be 1 or more\n")


def test_an_object_store_without_credentials_is_one_line():
    done = run("__import__('botocore.exceptions').exceptions.NoCredentialsError()")
    assert (done.returncode, done.stderr) == (2, "x: Unable to locate credentials\n")


def test_an_object_store_that_is_away_is_one_line_and_no_bad_input():
    done = run("__import__('botocore.exceptions').exceptions.EndpointConnectionError(endpoint_url='http://s')")
    assert (done.returncode, done.stderr) == (1, 'x: Could not connect to the endpoint URL: "http://s"\n')


def test_debug_shows_the_traceback_first():
    done = run("BadInput('steps = 0')", "--debug")
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("\nx: steps = 0\n")


@pytest.mark.parametrize("error", ["ValueError('operands could not be broadcast')", "KeyError('uid')"])
def test_a_bug_keeps_its_traceback(error):
    done = run(error)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "x: " not in done.stderr


def test_ctrl_c_says_how_to_go_on(capsys):
    with pytest.raises(SystemExit) as ended, told_in_one_line("x", "run it again"):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "x: stopped; run it again\n"


LOST = """
import os, signal
from curate.command_line import heed_ctrl_c, told_in_one_line

class Callback:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)  # Python drops what is raised in here

with told_in_one_line("x", "run it again"):
    del (here := [Callback()])[:]
    print("goes on", flush=True)
    heed_ctrl_c()
    print("never reached")
"""


def test_ctrl_c_that_a_callback_swallowed_is_heeded_between_parts():
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "goes on\n")
    assert done.stderr.endswith("x: stopped; run it again\n")


def test_ctrl_c_is_pythons_own_again_afterwards():
    with told_in_one_line("x", "run it again"):
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    heed_ctrl_c()


def test_bad_input_is_a_value_error():
    assert issubclass(BadInput, ValueError)
