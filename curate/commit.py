"""Which commit of this code is running."""

from __future__ import annotations

import os
import subprocess


def git_commit() -> str | None:
    """Return the commit of the code, with a mark where it was changed; None where neither a checkout
    nor the container's DARKROOM_GIT_COMMIT says it."""
    folder = os.path.dirname(os.path.abspath(__file__))
    try:
        said = subprocess.run(
            ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("DARKROOM_GIT_COMMIT") or None
    return said.stdout.strip()
