#!/usr/bin/env python3
"""Selection: keep or drop each sample, with its first reason and all of them. The only step that knows cut-offs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate.config import CurationConfig, SelectionConfig
from curate.cut_offs import check, columns, resolved, table_of
from curate.dedup.text_columns import words_of_hex
from curate.takedown import TakenDown
from curate.verdicts import Corpus, Reason, cut, earlier_findings, judge, ranks_samples, rows, rules
from pipelines.command import run_step
from pipelines.runner import Fragment, Made, Report, Runner, Step
from pipelines.store import Root, check_fragments, fragments, parquet_bytes, scratch_file, stale, table_file
from pipelines.taken_down import read_taken_down
from schemas.column import conform
from schemas.selection import SCHEMA

JOINED = ("samples", "features", "captions", "scores", "duplicates")
FIGURES = "tables/selection/_diversity.json"
THREADS = 4
COLUMNS = {
    "samples": ["status"],
    "features": ["status"],
    "captions": ["caption_reason"],
    "scores": ["blocklist_hit"],
    "duplicates": ["is_survivor", "kind", "semantic_cluster"],
}
GROUPS = {
    "source": ("samples", "source"),
    "license": ("samples", "license"),
    "domain": ("samples", "url"),
    "language": ("captions", "language"),
}
OF_DERIVED = {
    "shorter_side_px": ["width_px", "height_px"],
    "aspect": ["width_px", "height_px"],
    "caption_chars": ["caption_clean"],
}


def selection(runner: Runner) -> list[Report]:
    """Apply the cut-offs to every sample, in one task: quotas and clusters are the whole corpus' matter."""
    config = runner.config
    check(config.selection, config.score, config.dedup)
    tables = [fragments(runner.root, table) for table in JOINED]
    check_fragments(runner.root, tables[0], *JOINED[1:], dry_run=runner.dry_run)
    wanted = [Fragment(name="all", made_from=tables, arguments=(sorted(tables[0]),))] if tables[0] else []
    return [runner.run(Step(table="selection", settings=config.selection, build=_build), wanted)]


def _build(config: CurationConfig) -> Any:
    return lambda names: choose(config, names)


def choose(config: CurationConfig, names: list[str]) -> Made:
    """Return the table, a file for each fragment of samples: read once, judged, written."""
    root, asked = Root(config.root), _asked(config)
    with ThreadPoolExecutor(THREADS) as threads:
        corpus, edges = joined(threads.map(lambda name: _read(root, name, asked), names))
        diversity, reasons = judge(corpus, asked.settings), rules(asked.settings)
        stretches = [slice(first, last) for first, last in zip(edges[:-1], edges[1:], strict=True)]
        written = list(threads.map(lambda name, at: _write(root, name, corpus, at, reasons), names, stretches))
    files: dict[str, Any] = {
        table_file("selection", name): path for name, (path, _) in zip(names, written, strict=True)
    }
    files[FIGURES] = json.dumps(diversity, indent=1).encode()
    counts: Counter[str] = sum((count for _, count in written), Counter())
    return Made(rows=None, files=files, counts=dict(sorted(counts.items())), num_rows=int(edges[-1]))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the settings ask for, worked out once."""

    settings: SelectionConfig
    """With what the preset sets."""
    numbers: dict[str, str]
    """Columns of numbers, and the table of each."""
    later: set[str]
    """Those of them that rules over the whole corpus need."""
    columns: dict[str, list[str]]
    """Columns to read, by table."""
    taken_down: TakenDown


def _asked(config: CurationConfig) -> Asked:
    settings, taken_down = resolved(config.selection), read_taken_down(Root(config.root))
    numbers = {column: str(table_of(column, config.score)) for column in columns(settings)}
    return Asked(
        settings=settings,
        numbers=numbers,
        later=later_columns(settings),
        columns=_columns(settings, numbers, taken_down),
        taken_down=taken_down,
    )


def later_columns(settings: SelectionConfig) -> set[str]:
    """Return the columns of numbers that rules over the whole corpus need."""
    ranking = [quota.rank_by for quota in settings.quotas]
    ranking += [settings.diversity.rank_by] if settings.diversity is not None else []
    later = {said.column for said in settings.quantiles} | {said.column for said in settings.top_fractions}
    return later | {column for column in ranking if column is not None}


def _columns(settings: SelectionConfig, numbers: dict[str, str], taken_down: TakenDown) -> dict[str, list[str]]:
    wanted: dict[str, set[str]] = {table: {"uid", *names} for table, names in COLUMNS.items()}
    for column, table in numbers.items():
        wanted[table] |= set(OF_DERIVED.get(column, [column]))
    for quota in settings.quotas:
        wanted[GROUPS[quota.by][0]].add(GROUPS[quota.by][1])
    if settings.languages is not None:
        wanted["captions"].add("language")
    wanted["samples"] |= set(taken_down.columns())
    return {table: sorted(names) for table, names in wanted.items()}


@dataclass(kw_only=True, eq=False)
class Part:
    """What one fragment says, before it joins the corpus."""

    early: np.ndarray
    findings: list[tuple[Reason, ...]]
    broken: np.ndarray
    values: dict[str, np.ndarray]
    groups: dict[str, pa.DictionaryArray]
    cluster: np.ndarray
    uid_N2: np.ndarray


def _read(root: Root, name: str, asked: Asked) -> Part:
    """Read the columns that the settings ask for of one fragment of every table."""
    settings, tables = asked.settings, _aligned(root, name, asked.columns)
    away = pa.array(asked.taken_down.rows(tables["samples"]))
    for table in ("features", "captions", "scores"):  # duplicates has what could be decoded
        if not pc.all(pc.or_(tables[table]["uid"].is_valid(), away), min_count=0).as_py():
            raise stale(table_file(table, name))
    early, findings = earlier_findings(_findings(tables, away))
    values = {column: _numbers(column, tables[table]) for column, table in asked.numbers.items()}
    language = _not_in(tables["captions"]["language"], settings.languages) if settings.languages is not None else None
    broken = cut(settings, len(early), values, language)
    passes = pa.array(np.array([not one for one in findings], bool)[early] & (broken == 0))
    uids = tables["samples"]["uid"]
    return Part(
        early=early,
        findings=findings,
        broken=broken,
        values={column: values[column] for column in asked.later},
        groups={quota.by: _group(quota.by, tables, passes) for quota in settings.quotas},
        cluster=tables["duplicates"]["semantic_cluster"].fill_null(-1).to_numpy().astype(np.int32),
        uid_N2=words_of_hex(pa.chunked_array([uids]), 32) if ranks_samples(settings) else np.empty((len(uids), 0)),
    )


def _aligned(root: Root, name: str, wanted: dict[str, list[str]]) -> dict[str, dict[str, pa.Array]]:
    """Return the tables' columns in the order of samples; null where a table does not have the sample."""
    found: dict[str, dict[str, pa.Array]] = {}
    for table, names in wanted.items():
        read = root.read_table(table_file(table, name), names)
        arrays = {column: pa.array([], read.schema.field(column).type) for column in names}
        arrays |= {column: read[column].combine_chunks() for column in names if len(read)}
        uids = found.get("samples", arrays)["uid"]
        if not arrays["uid"].equals(uids):
            if not pc.all(pc.is_in(arrays["uid"], value_set=uids), min_count=0).as_py():
                raise stale(table_file(table, name))
            at = pc.index_in(uids, arrays["uid"])
            arrays = {column: array.take(at) for column, array in arrays.items()}
        found[table] = arrays
    return found


def _findings(tables: dict[str, dict[str, pa.Array]], taken_down: pa.Array) -> dict[str, pa.Array]:
    samples, duplicates = tables["samples"], tables["duplicates"]
    return {
        "taken_down": taken_down,
        "status": samples["status"],
        "image_status": tables["features"]["status"],
        "blocklist_hit": tables["scores"]["blocklist_hit"],
        "is_survivor": duplicates["is_survivor"],
        "kind": duplicates["kind"],
        "caption_reason": tables["captions"]["caption_reason"],
    }


def _numbers(column: str, table: dict[str, pa.Array]) -> np.ndarray:
    """Return a column as float32, NaN for null; sides are exact in it, and so is their ratio to 7 digits."""
    if column == "caption_chars":
        return _floats(pc.utf8_length(table["caption_clean"]))
    if column not in OF_DERIVED:
        return _floats(table[column])
    width, height = _floats(table["width_px"]), _floats(table["height_px"])
    shorter = np.minimum(width, height)
    return shorter if column == "shorter_side_px" else np.maximum(width, height) / shorter


def _floats(column: pa.Array) -> np.ndarray:
    return column.cast(pa.float32()).to_numpy(zero_copy_only=False).astype(np.float32, copy=False)


def _not_in(column: pa.Array, allowed: tuple[str, ...]) -> np.ndarray:
    listed = pc.is_in(column, value_set=pa.array(allowed, pa.string()))
    return pc.and_(pc.invert(listed), column.is_valid()).to_numpy(zero_copy_only=False)


def _group(by: str, tables: dict[str, dict[str, pa.Array]], passes: pa.Array) -> pa.DictionaryArray:
    """Return what a quota counts by, null for samples that do not reach it."""
    table, column = GROUPS[by]
    values = pc.if_else(passes, tables[table][column], None)
    return domains(values) if by == "domain" else values.dictionary_encode()


def domains(urls: pa.Array) -> pa.DictionaryArray:
    """Return the host of each URL in small letters, without port and leading www.; null for a path in a dump."""
    urls = pc.if_else(pc.match_substring_regex(urls, "^(?i:https?)://"), urls, None)
    encoded = pc.list_element(pc.split_pattern(urls, "/", max_splits=3), 2).dictionary_encode()
    hosts = pa.array([_host(authority) for authority in encoded.dictionary.to_pylist()], pa.string())
    return hosts.take(encoded.indices).dictionary_encode()


def _host(authority: str) -> str:
    named = authority.partition("?")[0].partition("#")[0].rpartition("@")[2].lower()
    host, _, port = named.rpartition(":")
    return (host if port.isdigit() or not port else named).removeprefix("www.")


def joined(parts: Iterator[Part]) -> tuple[Corpus, np.ndarray]:
    """Return the whole corpus and where each part begins, with the number of samples behind them."""
    whole: dict[tuple[Reason, ...], int] = {(): 0}
    numbers: dict[str, dict[str, int]] = {}
    read: list[Part] = []
    groups: dict[str, list[np.ndarray]] = {}
    for part in parts:
        places = np.array([whole.setdefault(found, len(whole)) for found in part.findings], np.uint16)
        part.early = places[part.early] if len(places) else np.empty(0, np.uint16)
        for by, array in part.groups.items():
            known = numbers.setdefault(by, {})
            of = np.array([known.setdefault(v, len(known)) for v in array.dictionary.to_pylist()] + [-1], np.int32)
            groups.setdefault(by, []).append(of[array.indices.fill_null(-1).to_numpy()])
        part.groups, part.findings = {}, []
        read.append(part)
    edges = np.cumsum([0, *(len(part.early) for part in read)])
    corpus = Corpus(
        early=_drawn([vars(part) for part in read], "early"),
        findings=list(whole),
        broken=_drawn([vars(part) for part in read], "broken"),
        values={name: _drawn([part.values for part in read], name) for name in list(read[0].values)},
        groups={by: np.concatenate(groups.pop(by)) for by in list(groups)},
        names={by: list(known) for by, known in numbers.items()},
        cluster=_drawn([vars(part) for part in read], "cluster"),
        uid_N2=_drawn([vars(part) for part in read], "uid_N2"),
    )
    return corpus, edges


def _drawn(parts: list[dict[str, Any]], name: str) -> np.ndarray:
    """Return the parts' arrays of one name in a row, and let go of them."""
    return np.concatenate([part.pop(name) for part in parts])


def _write(root: Root, name: str, corpus: Corpus, at: slice, reasons: list[str]) -> tuple[Path, Counter[str]]:
    """Write a fragment's table to a local file; return it and how often each first reason occurs."""
    uids = root.read_table(table_file("samples", name), ["uid"])["uid"]
    chosen = rows(corpus, at, reasons, uids)
    assert len(chosen) == at.stop - at.start, f"{name}: samples changed while selection ran"
    path = scratch_file(".parquet")
    path.write_bytes(parquet_bytes(conform(chosen, SCHEMA)))
    counted = pc.value_counts(chosen["reject_reason"].combine_chunks().fill_null("kept")).to_pylist()
    return path, Counter({count["values"]: count["counts"] for count in counted})


if __name__ == "__main__":
    run_step("selection", selection, __doc__)
