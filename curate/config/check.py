"""How a setting is refused."""

from __future__ import annotations

from curate.bad_input import BadInput


def require(condition: bool, field_name: str, value: object, fix: str) -> None:
    """Raise BadInput with one line that names field, value and fix."""
    if not condition:
        raise BadInput(f"{field_name} = {value!r}: {fix}")
