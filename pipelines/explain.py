"""One sample's story: where it came from, what was measured, every verdict with its value, and where it lies now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.bad_input import BadInput
from curate.config import SelectionConfig
from curate.config_file import from_dict
from curate.cut_offs import active, dropped, resolved
from pipelines.dashboard_server.tables import SHOWN, readable
from pipelines.store import Root, table_file
from pipelines.taken_down import read_taken_down

NOT_MEASURED = ("uid", "status", "error", "embedding", "phash64_turned", "pdq256_turned")
CAPTION_LIMITS = {
    "caption_too_short": ("num_words", "min_words"),
    "caption_too_many_tokens": ("num_clip_tokens", "max_clip_tokens"),
    "caption_language": ("language", "languages"),
    "caption_boilerplate": ("caption_count", "max_caption_count"),
    "caption_near_boilerplate": ("near_caption_count", "max_near_caption_count"),
}
"""By reason: the column of captions that it is about, and the setting that it is held against."""
FETCHED = ("fetched_at", "status", "error", "http_status", "requests", "final_url")
PLACED = ("split", "shard", "offset", "num_bytes")
MOST_NAMED = 5
"""uids that are named where a prefix is not unique."""


def story(root: Root, prefix: str) -> dict[str, Any]:
    """Return what is known of the sample whose uid begins so; raises BadInput for none and for several.

    Of a sample on a blocklist only hashes are told.
    """
    fragment, uid = _find(root, prefix.strip().lower())
    rows = {table: _row(root, table, fragment, uid) for table in SHOWN}
    samples, scores = rows["samples"] or {}, rows["scores"] or {}
    if scores.get("blocklist_hit"):
        return {"uid": uid, "sha256": samples.get("sha256"), "blocklist_match": scores["blocklist_match"]}
    duplicates = rows["duplicates"]
    return {
        "uid": uid,
        "samples": samples,
        "fetches": [{name: row[name] for name in FETCHED} for row in _anywhere(root, "fetches", uid, fragment)],
        "features": rows["features"],
        "captions": rows["captions"],
        "caption_limit": _caption_limit(root, rows["captions"]),
        "duplicates": duplicates,
        "scores": scores or None,
        "models": {table: (readable(root, table).manifest or {}).get("models", []) for table in ("features", "scores")},
        "cut_offs": _cut_offs(root, rows) if rows["selection"] else [],
        "selection": rows["selection"],
        "shards": [{name: row[name] for name in PLACED} for row in _anywhere(root, "shards", uid)],
        "latents": [{name: row[name] for name in PLACED} for row in _anywhere(root, "latents", uid)],
        "missing": [told for table in SHOWN if rows[table] is None and (told := readable(root, table).told)],
    }


def lines(told: dict[str, Any]) -> Iterator[str]:
    """Yield a story for people; text of strangers is shown without control characters."""
    yield f"{'uid':<12}{told['uid']}"
    if "blocklist_match" in told:
        yield f"{'sha256':<12}{told['sha256']}"
        yield f"{'blocklist':<12}on a blocklist ({told['blocklist_match']}): nothing else of it is shown"
        return
    yield from _origin(told["samples"], told["fetches"])
    yield from _caption(told["captions"], told["caption_limit"])
    yield from _numbers("measured", told["features"], told["models"]["features"])
    yield from _duplicate(told["duplicates"], told["uid"])
    yield from _numbers("scores", told["scores"], told["models"]["scores"])
    yield from _labelled("cut-offs", [_cut_off(cut) for cut in told["cut_offs"]])
    yield from _verdict(told["selection"])
    for kind in ("shards", "latents"):
        for place in told[kind]:
            yield f"{kind:<12}{place['shard']} at {place['offset']:,}, {place['num_bytes']:,} bytes"
    for note in told["missing"]:
        yield f"{'not yet':<12}{note}"


def plain(value: Any) -> Any:
    """Return a value of a table as JSON has it; hashes as hex."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int) and value >= 2**53:
        return f"{value:016x}"
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _find(root: Root, prefix: str) -> tuple[str, str]:
    """Return the fragment and the whole uid."""
    found: list[tuple[str, str]] = []
    samples = readable(root, "samples")
    for fragment in samples.fragments:
        uids = root.read_table(table_file("samples", fragment), ["uid"])["uid"]
        found += [(fragment, uid) for uid in uids.filter(pc.starts_with(uids, prefix)).to_pylist()]
    if len(found) == 1:
        return found[0]
    if found:
        named = ", ".join(uid for _, uid in found[:MOST_NAMED])
        raise BadInput(f"--explain {prefix}: {len(found):,} samples begin so: give more of one of {named}")
    if any(uid.startswith(prefix) for uid in read_taken_down(root).uids):
        raise BadInput(f"--explain {prefix}: it was taken down: nothing of it is left")
    where = f"no sample under {root.url} begins so" if samples.fragments else samples.told
    raise BadInput(f"--explain {prefix}: {where}")


def _row(root: Root, table: str, fragment: str, uid: str) -> dict[str, Any] | None:
    """Return the sample's row with plain values; None where the table has none yet. Embeddings are left out."""
    if fragment not in readable(root, table).fragments:
        return None
    file = table_file(table, fragment)
    names = [name for name in root.column_names(file) if name not in NOT_MEASURED[3:]]
    rows = _only(root.read_table(file, names), uid)
    return rows[0] if rows else None


def _anywhere(root: Root, table: str, uid: str, chunk: str | None = None) -> list[dict[str, Any]]:
    """Return the sample's rows of a table whose fragments are others; rounds of a crawl begin with their chunk."""
    found: list[dict[str, Any]] = []
    for fragment in readable(root, table).fragments:
        if chunk is None or fragment.rpartition("-r")[0] == chunk:
            found += _only(root.read_table(table_file(table, fragment)), uid)
    return found


def _only(rows: pa.Table, uid: str) -> list[dict[str, Any]]:
    return [plain(row) for row in rows.filter(pc.equal(rows["uid"], uid)).to_pylist()]


def _caption_limit(root: Root, row: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the value and the setting that a caption's reason is about, where a number decided."""
    column, setting = CAPTION_LIMITS.get((row or {}).get("caption_reason") or "", (None, None))
    settings = (readable(root, "captions").manifest or {}).get("settings", {})
    if row is None or column is None or setting not in settings:
        return None
    return {"column": column, "value": row[column], "setting": f"captions.{setting}", "limit": settings[setting]}


def _cut_offs(root: Root, rows: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Return each cut-off that selection was run with, with the sample's value."""
    said = (readable(root, "selection").manifest or {}).get("settings", {})
    settings = from_dict(SelectionConfig, said)
    values = _values(rows)
    return [
        {
            "setting": f"selection.{cut.setting}",
            "column": cut.column,
            "value": values.get(cut.column),
            "limit": limit,
            "drops": bool(dropped(cut, limit, np.array([values.get(cut.column)], np.float32))[0]),
        }
        for cut, limit in active(resolved(settings))
    ]


def _values(rows: dict[str, dict[str, Any] | None]) -> dict[str, Any]:
    """Return every number of a sample by column, with those that selection derives."""
    values: dict[str, Any] = {}
    for table in ("features", "captions", "scores"):
        values |= rows[table] or {}
    width, height, text = values.get("width_px"), values.get("height_px"), values.get("caption_clean")
    if width and height:
        values |= {"shorter_side_px": min(width, height), "aspect": max(width, height) / min(width, height)}
    return values | {"caption_chars": len(text or "")}


def _origin(row: dict[str, Any], fetches: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{'source':<12}{row['source']}" + (f", licence {_shown(row['license'])}" if row["license"] else "")
    yield f"{'url':<12}{_shown(row['url'])}"
    for fetch in fetches:
        http = f", HTTP {fetch['http_status']}" if fetch["http_status"] else ""
        moved = f", moved to {_shown(fetch['final_url'])}" if fetch["final_url"] else ""
        why = f" ({_shown(fetch['error'])})" if fetch["error"] else ""
        yield f"{'asked':<12}{fetch['fetched_at']}: {fetch['status']}{why}{http}, {fetch['requests']} requests{moved}"
    if row["shard"]:
        size = f"{row['format']} {row['width_px']} x {row['height_px']} px"
        yield f"{'original':<12}{row['shard']} at {row['offset']:,}, {row['num_bytes']:,} bytes, {size}"
        yield f"{'sha256':<12}{row['sha256']}"
    if row["status"] != "ok":
        yield f"{'came in':<12}no: {row['status']}" + (f" ({_shown(row['error'])})" if row["error"] else "")
    yield f"{'caption':<12}{_shown(row['caption'])}"


def _caption(row: dict[str, Any] | None, limit: dict[str, Any] | None) -> Iterator[str]:
    if row is None:
        return
    yield f"{'repaired':<12}{_shown(row['caption_clean'])}"
    certain = "" if row["language_prob"] is None else f" ({row['language_prob']:.2f})"
    words = f"{row['num_words']} words, {row['num_clip_tokens']} CLIP tokens, on {row['caption_count']:,} samples"
    yield f"{'':<12}{row['language'] or 'no language'}{certain}, {words}"
    if row["caption_reason"]:
        why = f": {limit['column']} {_number(limit['value'])}, {limit['setting']} = {limit['limit']}" if limit else ""
        yield f"{'':<12}{row['caption_reason']}{why}"


def _numbers(label: str, row: dict[str, Any] | None, models: list[str]) -> Iterator[str]:
    """Yield the columns of a row that have a value, a few on a line."""
    if row is None:
        return
    if row.get("status", "ok") != "ok":
        yield f"{label:<12}no: {row['status']} ({_shown(row['error'])})"
        return
    said = [f"{name} {_number(value)}" for name, value in row.items() if name not in NOT_MEASURED and value is not None]
    said = [one for one in said if not one.startswith("blocklist_hit")]
    fours = [", ".join(said[at : at + 4]) for at in range(0, len(said), 4)]
    yield from _labelled(label, [*fours, *(f"by {model}" for model in models)])


def _duplicate(row: dict[str, Any] | None, uid: str) -> Iterator[str]:
    if row is None:
        return
    if row["is_survivor"]:
        yield f"{'duplicates':<12}none that is better: it survives"
        return
    unit = {"perceptual": " bits", "semantic": " (1 - cosine)"}.get(row["kind"], "")
    far = "" if row["distance"] is None else f" at distance {_number(row['distance'])}{unit}"
    of = f" of {row['survivor_uid']}" if row["survivor_uid"] and row["survivor_uid"] != uid else ""
    won = f", which is ahead by {row['won_by']}" if row["won_by"] else ""
    yield f"{'duplicates':<12}{row['kind']} duplicate{of}{far}{won}"


def _verdict(row: dict[str, Any] | None) -> Iterator[str]:
    if row is None:
        return
    if row["keep"]:
        yield f"{'verdict':<12}kept, weight {_number(row['weight'])}"
        return
    yield f"{'verdict':<12}dropped at {row['reject_stage']}: {row['reject_reason']}"
    if len(row["reasons"]) > 1:
        yield f"{'':<12}all reasons: {', '.join(row['reasons'])}"


def _cut_off(cut: dict[str, Any]) -> str:
    value = "no value" if cut["value"] is None else _number(cut["value"])
    outcome = "DROPS it" if cut["drops"] else "passes"
    return f"{cut['setting']} = {_number(cut['limit'])}: {cut['column']} {value}, {outcome}"


def _labelled(label: str, texts: list[str]) -> Iterator[str]:
    """Yield the lines with the label before the first one."""
    for number, text in enumerate(texts):
        yield f"{'' if number else label:<12}{text}"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _shown(text: str | None) -> str:
    """Return text of strangers as a terminal may show it."""
    if text is None:
        return "none"
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
