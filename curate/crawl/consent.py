"""What the owner of an image says about its use in the headers of the answer and in files of the host. Pure rules."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""X-Robots-Tag directives with a colon of their own, which names no robot."""
AI_USES = frozenset({"train-ai", "train-genai", "genai", "ai", "tdm", "bots"})
"""Keys of Content-Usage that cover training, in the drafts of the IETF's AI preferences so far."""


def x_robots_opt_out(values: Sequence[str], token: str, directives: Collection[str]) -> str | None:
    """Return the first directive of X-Robots-Tag that excludes the image for all robots or for `token`.

    A robot's name, once given, holds for the rest of its header line; `none` stands for
    `noindex, nofollow`.
    """
    for value in values:
        robot = "*"
        for part in value.lower().split(","):
            name, colon, rest = (word.strip() for word in part.partition(":"))
            if colon and " " not in name and name not in VALUED:
                robot, name = name, rest
            meant = "noindex" if name == "none" else name
            if robot in ("*", token.lower()) and meant in directives:
                return meant
    return None


def content_usage_opt_out(values: Sequence[str]) -> str | None:
    """Return the first use in Content-Usage that is refused (`key=n`) and covers training."""
    for part in ",".join(values).lower().split(","):
        name, _, said = part.partition(";")[0].partition("=")
        if name.strip() in AI_USES and said.strip() == "n":
            return name.strip()
    return None


def usage_rules(robots_txt: str) -> str | None:
    """Return a robots.txt that allows just what the Content-Usage rules of another refuse; None without such rules.

    A rule holds for its group and the longest path that fits, and of equal paths the refusal
    (draft-ietf-aipref-attach, 3), as Allow does over Disallow (RFC 9309, 2.2.2): so a refusal
    becomes Allow, and all else Disallow. Whoever reads the result needs no rules of its own.
    """
    lines, found = ["User-agent: *", "Disallow: /"], False
    for line in robots_txt.splitlines():
        name, _, value = line.partition("#")[0].partition(":")
        field, value = name.strip().lower(), value.strip()
        if field.startswith(("user-agent", "useragent", "user agent")):
            lines.append(line)
        elif field and not field.startswith(("sitemap", "host")):
            lines.append("Disallow: /")
        if field == "content-usage":
            found = True
            path, said = [*value.split(None, 1), ""][:2] if value.startswith("/") else ("/", value)
            lines.append(f"{'Allow' if content_usage_opt_out([said]) else 'Disallow'}: {path}")
    return "\n".join(lines) if found else None


def tdm_reserved(values: Sequence[str]) -> bool:
    """Return whether the tdm-reservation header (W3C TDMRep) reserves the rights."""
    return any(value.strip() == "1" for value in values)


def read_tdmrep(text: str) -> list[str]:
    """Return the locations that a tdmrep.json reserves; raises ValueError where it is none.

    A location that another entry frees counts as reserved, too.
    """
    entries = json.loads(text)
    if not isinstance(entries, list):
        raise ValueError("tdmrep.json: not a list")
    rules = [entry for entry in entries if isinstance(entry, Mapping)]
    return [str(rule.get("location", "/")) for rule in rules if str(rule.get("tdm-reservation")) == "1"]


def is_reserved(path: str, locations: Sequence[str]) -> bool:
    """Return whether a path lies in one of the locations: prefixes with * for anything and $ for the end."""
    return any(_fits(path, location) for location in locations)


def _fits(path: str, location: str) -> bool:
    """Return whether a path fits one location; without a regular expression, which many * would keep busy for ever."""
    first, *parts = location.removesuffix("$").split("*")
    last = parts.pop() if parts else None
    if not path.startswith(first):
        return False
    at = len(first)
    for part in parts:
        found = path.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    if not location.endswith("$"):
        return last is None or path.find(last, at) >= 0
    return len(path) == at if last is None else path[at:].endswith(last)
