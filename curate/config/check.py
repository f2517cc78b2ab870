"""How a setting is refused."""

from __future__ import annotations


def require(condition: bool, field_name: str, value: object, fix: str) -> None:
    """Raise ValueError with one line that names field, value and fix."""
    if not condition:
        raise ValueError(f"{field_name} = {value!r}: {fix}")
