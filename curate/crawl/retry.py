"""Which rows are asked again, and when. Pure rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from curate import sample
from curate.config import RetryPolicy


@dataclass(kw_only=True)
class Tried:
    """What is known of one row after all rounds so far."""

    status: str
    runs: int
    """Runs that asked and count; one that the alarm stopped does not."""
    counted: bool
    """Whether the last one did."""
    fetched_at_s: float
    retry_after_s: float | None


def next_run_at_s(tried: Tried, policies: Mapping[str, RetryPolicy]) -> float | None:
    """Return the time (seconds since 1970) from which a run asks again, None for never."""
    if tried.status == sample.NOT_REQUESTED:
        return 0.0
    policy = policies.get(tried.status)
    if policy is None or tried.runs >= policy.runs:
        return None
    if not tried.counted:
        return 0.0
    pause_s = policy.next_run_after_s * 4.0 ** (tried.runs - 1)
    return tried.fetched_at_s + max(pause_s, tried.retry_after_s or 0.0)


def pause_in_run_s(policy: RetryPolicy | None, attempt: int, retry_after_s: float | None, longest_s: float) -> float:
    """Return the seconds before another attempt in this run; infinity where there is none."""
    if policy is None:
        return float("inf")
    pause_s = max(policy.wait_s * 2.0**attempt, retry_after_s or 0.0)
    return pause_s if pause_s <= longest_s else float("inf")
