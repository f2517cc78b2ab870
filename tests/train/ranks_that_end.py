"""Run by some ranks: each ends as its word says: with an exit code (late after `late`), killed, or never in time."""

from __future__ import annotations

import os
import signal
import sys
import time


def main(words: list[str]) -> None:
    word = words[int(os.environ["RANK"])]
    if word == "hang":
        time.sleep(60)
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word.startswith("late"):
        time.sleep(0.5)
    sys.exit(int(word.removeprefix("late")))


if __name__ == "__main__":
    main(sys.argv[1:])
