"""The dashboard's server without a browser: who may ask, what is answered, and what never leaves it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import datasets
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from starlette.testclient import TestClient

from curate.buckets import nearest
from curate.config import DiversityConfig, Quantile, Quota, SelectionConfig, Threshold, TopFraction
from curate.cut_offs import CUT_OFFS
from curate.image import UnreadableImage
from curate.takedown import TakenDown
from pipelines.calibrate import read_labels
from pipelines.dashboard import write as write_elsewhere
from pipelines.dashboard_server import open_elsewhere
from pipelines.dashboard_server.answers import QUESTIONS, shown
from pipelines.dashboard_server.app import application
from pipelines.dashboard_server.browse import near
from pipelines.dashboard_server.cut_off_list import later_reasons, limits, recorded, with_limits
from pipelines.dashboard_server.exported import TooLarge, page
from pipelines.dashboard_server.funnel_page import is_defect
from pipelines.dashboard_server.index import Index
from pipelines.dashboard_server.pictures import Pictures
from pipelines.dashboard_server.settings import DashboardConfig
from pipelines.dashboard_server.what_if import limits_asked, what_if
from pipelines.dashboard_server.whole_corpus import whole_corpus
from pipelines.store import Root
from pipelines.taken_down import write_taken_down
from tests.dashboard.conftest import serving
from tests.dashboard.made_root import (
    BLOCKED,
    BROKEN,
    COPY,
    GONE,
    HOSTILE,
    HOSTILE_AT,
    ROWS,
    SCHEMAS,
    SETTINGS,
    UNSAFE,
    made_rows,
    publish_table,
    selected,
    uid,
    write_grid,
    write_root,
    write_training,
)
from tests.pipelines.small_run import run
from tests.test_imports import names_importing


class Client:
    """Asks the server, with or without a cookie."""

    def __init__(self, address: str) -> None:
        self.split = urlsplit(address)

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection("127.0.0.1", self.split.port, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent |= {"content-type": sent.get("content-type", "application/json")}
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def get(self, question: str, /, **asked: Any) -> Any:
        status, _, body = self.ask(f"/api/{question}?{urlencode(asked)}")
        assert status == 200, body
        return json.loads(body)


@pytest.fixture(scope="module")
def client(made_folder):
    with serving("--root", str(made_folder)) as address:
        yield Client(address)


@pytest.fixture
def index(made_folder):
    index = Index(Root(str(made_folder)))
    index.refresh()
    yield index
    index.close()


def numbers(client: Client) -> dict[str, int]:
    return {tile["uid"]: tile["number"] for tile in client.get("samples", first=0, count=200)["tiles"]}


def test_other_hosts_and_other_sites_are_refused(client):
    port = client.split.port
    assert client.ask("/api/overview")[0] == 200
    assert client.ask("/api/overview", Host=f"localhost:{port}")[0] == 200
    assert client.ask("/api/overview", Host="evil.example")[0] == 421
    assert client.ask("/api/overview", Host=f"127.0.0.1.evil.example:{port}")[0] == 421
    assert client.ask("/api/overview", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="cors")[0] == 403
    assert client.ask("/api/save", {}, Origin="http://evil.example")[0] == 403
    assert client.ask("/api/save", {}, Origin="null")[0] == 403
    assert client.ask("/api/save", {}, content_type="text/plain")[0] == 415
    assert client.ask("/api/label", {"score": "x" * 5000})[0] == 413
    assert client.ask("/api/save")[0] == 405


def test_every_answer_keeps_to_itself(client):
    for path in ("/", "/page/main.js", "/api/overview", "/picture/0?side=96", "/api/none"):
        _, headers, _ = client.ask(path)
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe-eval" not in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["cross-origin-resource-policy"] == "same-origin", path
        assert headers["cache-control"] == "no-store", path


def test_off_loopback_a_token_is_needed_once(made_folder):
    with serving("--root", str(made_folder), "--host", "0.0.0.0", "--names", "[board.example]") as address:
        token = urlsplit(address).query.removeprefix("token=")
        assert len(token) > 40
        client, own = Client(address), {"Host": "board.example"}
        assert client.ask("/", **own)[0] == 401
        assert client.ask("/api/overview", **own)[0] == 401
        assert client.ask("/?token=wrong", **own)[0] == 401
        assert client.ask(f"/?token={token}", Host="evil.example")[0] == 421
        status, headers, _ = client.ask(f"/?token={token}", **own)
        assert (status, headers["location"]) == (303, "/")
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and token not in cookie
        assert client.ask("/api/overview", Cookie=cookie.split(";")[0], **own)[0] == 200
        assert client.ask("/api/overview", Cookie="darkroom_session=guess", **own)[0] == 401


def test_listening_everywhere_wants_names():
    with pytest.raises(ValueError, match="names"):
        DashboardConfig(root="r", host="0.0.0.0")
    assert DashboardConfig(root="r", host="0.0.0.0", names=("a",)).is_local is False
    assert DashboardConfig(root="r").is_local is True


def test_pictures_are_of_places_in_the_index_and_carry_nothing_but_pixels(client, made_folder):
    at = numbers(client)
    raw = (made_folder / "raw/made.tar").read_bytes()
    assert b"SECRETCAMERA" in raw
    status, headers, body = client.ask(f"/picture/{at[uid(0)]}?side=192")
    assert (status, headers["content-type"]) == (200, "image/webp")
    with Image.open(io.BytesIO(body)) as image:
        assert max(image.size) == 192 and not image.getexif() and "exif" not in image.info
    assert b"SECRETCAMERA" not in body
    assert client.ask(f"/picture/{at[uid(BROKEN)]}")[0] == 415
    assert client.ask(f"/picture/{at[uid(GONE)]}")[0] == 404
    assert client.ask("/picture/99999999999")[0] == 404
    assert client.ask(f"/picture/{at[uid(0)]}?side=5000")[0] == 400
    for path in ("/picture/../raw/made.tar", "/page/../dashboard.py", "/page/%2e%2e/dashboard.py", "/raw/made.tar"):
        assert client.ask(path)[0] == 404, path


def test_a_hit_of_a_blocklist_is_nowhere(client, index):
    hit = index.rows("SELECT number FROM board WHERE uid = ?", [uid(BLOCKED)])[0][0]
    assert uid(BLOCKED) not in numbers(client)
    assert client.ask(f"/picture/{hit}")[0] == 404
    assert client.ask(f"/api/sample?uid={uid(BLOCKED)}")[0] == 404
    assert client.ask(f"/api/like?uid={uid(BLOCKED)}")[0] == 404
    assert client.get("samples", reason="blocklist")["rows"] == 0
    funnel = client.get("funnel")
    stages = {stage["stage"]: stage["rows"] for stage in funnel["stages"]}
    assert stages["score"] == 1
    said = json.dumps([client.get("label-queue", score="aesthetic", count=200), client.get("clusters")])
    said += json.dumps(client.get("near", setting="min_aesthetic", value=1.4))
    assert uid(BLOCKED) not in said
    assert client.ask("/api/label", {"score": "aesthetic", "uid": uid(BLOCKED), "label": "good"})[0] == 404


def test_before_the_blocklists_are_applied_no_picture_is_shown(tmp_path):
    root = Root(str(tmp_path))
    made = made_rows(root, 20)
    for name in ("samples", "captions", "features"):
        publish_table(root, name, pa.Table.from_pylist(made[name], schema=SCHEMAS[name]))
    for unchecked, listed in ((False, 1), (True, 20)):  # one sample has no picture, and nothing to compare
        index = Index(root, unchecked=unchecked)
        index.refresh()
        told = QUESTIONS["overview"](shown(index, {}), {})
        assert QUESTIONS["samples"](shown(index, {}), {})["rows"] == listed
        assert any("run python pipelines/score.py" in note for note in told["notes"])
        assert any("not been compared with the blocklists" in note for note in told["notes"]) is not unchecked
        index.close()


def test_no_local_path_leaves_the_server(client, made_folder):
    for name in QUESTIONS:
        asked = {"name": "entropy_bits", "score": "aesthetic", "setting": "min_side_px", "value": "250", "run": "base"}
        asked |= {"uid": uid(0), "by": "source"} | ({"name": "host"} if name == "most-frequent" else {})
        if name == "samples":
            asked = {}
        said = json.dumps(client.get(name, **asked))
        assert str(made_folder.parent) not in said and "made.tar" not in said, name


def test_what_is_asked_is_never_sql(client):
    hostile = "'; DROP TABLE board; --"
    assert client.get("samples", source=hostile)["rows"] == 0
    assert client.get("samples", text=hostile)["rows"] == 0
    for name, asked in (
        ("samples", {"score": hostile, "low": "1"}),
        ("samples", {"sort": hostile}),
        ("samples", {"score": "aesthetic", "low": "nan"}),
        ("samples", {"first": "-1"}),
        ("samples", {"count": "1000000"}),
        ("samples", {"kept": "perhaps"}),
        ("split", {"by": hostile}),
        ("histogram", {"name": 'aesthetic" FROM board; --'}),
        ("most-frequent", {"name": "uid"}),
        ("counts", {"min_side_px": hostile}),
        ("near", {"setting": hostile, "value": "1"}),
        ("clusters", {"kind": hostile}),
        ("clusters", {"order": hostile}),
        ("label-queue", {"score": "../../x"}),
    ):
        status, _, body = client.ask(f"/api/{name}?{urlencode(asked)}")
        assert status == 400, (name, asked)
        assert next(iter(asked)) in body.decode() or len(asked) > 1
    assert client.get("overview")["rows"] == ROWS


def test_the_funnel_is_what_selection_says(client, made_folder):
    told = duckdb.sql(
        f"""SELECT reject_stage, reject_reason, count(*) FROM '{made_folder}/tables/selection/*.parquet'
        GROUP BY ALL"""
    ).fetchall()
    expected = {(stage, reason): count for stage, reason, count in told}
    found = client.get("funnel")
    listed = {(s["stage"], r["reason"]): r["rows"] for s in found["stages"] for r in s["reasons"]}
    assert listed == {key: count for key, count in expected.items() if key[0] is not None}
    assert (found["rows_in"], found["rows_kept"]) == (ROWS, expected[None, None])
    assert found["stages"][-1]["left"] == found["rows_kept"]
    assert found["steps"][0]["rows_per_s"] == ROWS / 2
    split = client.get("split", by="source")
    assert {v["value"]: v["rows"] for v in split["values"]} == {"crawl": 40, "archive": 20}
    for stage, reasons in ((s["stage"], s["reasons"]) for s in found["stages"]):
        for reason in reasons:
            rows = client.get("samples", stage=stage, reason=reason["reason"])["rows"]
            assert rows == (0 if reason["reason"] == "blocklist" else reason["rows"])


@pytest.mark.parametrize(
    ("stage", "reason", "defect"),
    [
        ("ingest", "http_gone", True),
        ("ingest", "opt_out_robots_txt", False),
        ("ingest", "license_not_allowed", False),
        ("embed", "decode_error", True),
        ("dedup", "duplicate_exact", False),
        ("dedup", "duplicate_error_image", True),
        ("captions", "caption_language", False),
        ("selection", "unsafe", False),
    ],
)
def test_defects_are_kept_apart_from_policy(stage, reason, defect):
    assert is_defect(stage, reason) is defect


def test_every_cut_off_has_a_slider():
    config = SelectionConfig(thresholds=(Threshold(column="text_share", max=0.5),))
    by_setting = {limit.setting: limit for limit in limits(config)}
    others = ["thresholds.text_share.min", "thresholds.text_share.max"]
    assert list(by_setting) == [cut.setting for cut in CUT_OFFS] + others
    assert [by_setting[name].value for name in ("min_side_px", *others)] == [200, None, 0.5]
    assert by_setting["min_aesthetic"].is_minimum and not by_setting["max_nsfw_prob"].is_minimum
    assert by_setting["min_aesthetic"].column == "aesthetic" and by_setting["max_aspect"].column is None


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"min_aesthetic": 5.5},
        {"min_aesthetic": None, "max_nsfw_prob": None, "min_side_px": 300},
        {"min_side_px": 280, "max_aspect": 1.2, "min_sharpness": 100.0, "min_clip_similarity": 0.31},
        {"min_caption_words": 9, "min_caption_chars": 40, "min_clip_similarity": 0.3},
    ],
)
def test_counts_are_those_of_the_selection_step(client, made_folder, tmp_path, changed):
    """The oracle is selection itself, run on the tables with those settings."""
    config = replace(SETTINGS, **changed)
    chosen = selected(str(made_folder), config).to_pylist()
    asked = {limit.setting: limit.value for limit in limits(config)}
    found = client.get("counts", **{name: "off" if value is None else value for name, value in asked.items()})
    assert found["kept"] == sum(row["keep"] for row in chosen)
    reasons = [row["reject_reason"] for row in chosen]
    by_reason = {limit.reason: limit.setting for limit in limits(config)}
    dropped = {cut["setting"]: cut["dropped"] for cut in found["cut_offs"]}
    assert dropped == {setting: reasons.count(reason) for reason, setting in by_reason.items()}
    assert found["cut_offs"][-1]["left"] == found["kept"]
    assert sum(bucket["rows"] for bucket in found["buckets"]) == found["kept"]


def test_rules_behind_the_cut_offs_are_counted(tmp_path):
    """The preset is spelt out, thresholds have sliders, languages count."""
    settings = SelectionConfig(
        preset="datacomp_basic",
        min_side_px=1,
        min_aesthetic=4.0,
        thresholds=(Threshold(column="num_clip_tokens", min=1, max=100), Threshold(column="sharpness", max=400.0)),
    )
    write_root(str(tmp_path), change=_without_language_rule, settings=settings)
    index = Index(Root(str(tmp_path)))
    index.refresh()
    values = {limit.setting: limit.value for limit in limits(index.settings)}
    assert (values["min_side_px"], values["thresholds.sharpness.max"]) == (200, 400.0)
    for sharpest in (400.0, 310.0, None):
        counted = what_if(index, values | {"thresholds.sharpness.max": sharpest})
        moved = with_limits(settings, {"thresholds.sharpness.max": sharpest})
        chosen = selected(str(tmp_path), moved).to_pylist()
        assert counted["kept"] == sum(row["keep"] for row in chosen)
        languages = [cut["dropped"] for cut in counted["cut_offs"] if cut["setting"] == "languages"]
        assert languages == [[row["reject_reason"] for row in chosen].count("other_language")] != [0]
    assert recorded(index.root) == index.settings and index.settings.preset == "none"
    index.close()


WHOLE_CORPUS = {
    "quantile": {"quantiles": (Quantile(column="sharpness", low=0.1, high=0.9, of="measured"),)},
    "quantile of those left": {"quantiles": (Quantile(column="aesthetic", low=0.3, of="passed"),)},
    "best fraction": {"top_fractions": (TopFraction(column="aesthetic", fraction=0.5),)},
    "best fraction, hits of a blocklist apart": {
        "top_fractions": (TopFraction(column="clip_similarity", fraction=0.5),)
    },
    "quotas": {
        "quotas": (
            Quota(by="source", max_samples=20, rank_by="sharpness"),
            Quota(by="domain", max_share=0.2),
            Quota(by="license", max_samples=9, values=("CC-BY-4.0",)),
            Quota(by="language", max_samples=15, rank_by="aesthetic"),
        )
    },
    "clusters": {"diversity": DiversityConfig(max_per_cluster=3)},
    "weights": {
        "diversity": DiversityConfig(temperature=0.5, act="weight"),
        "quotas": (Quota(by="source", max_samples=9),),
    },
    "all, no cut-off": {
        "min_aesthetic": None,
        "min_side_px": None,
        "max_aspect": None,
        "min_entropy_bits": None,
        "max_nsfw_prob": None,
        "max_watermark_prob": None,
        "languages": ("en",),
        "quantiles": (Quantile(column="sharpness", low=0.1, high=0.9, of="measured"),),
        "top_fractions": (TopFraction(column="clip_similarity", fraction=0.8, of="passed"),),
        "quotas": (Quota(by="source", max_samples=20, rank_by="sharpness"),),
        "diversity": DiversityConfig(max_per_cluster=2, rank_by="aesthetic"),
    },
}


@pytest.mark.parametrize("name", WHOLE_CORPUS)
def test_rules_over_the_whole_corpus_count_as_the_selection_step_does(tmp_path, name):
    settings = replace(SETTINGS, **WHOLE_CORPUS[name])
    write_root(str(tmp_path), change=_with_clusters, settings=settings)
    index = Index(Root(str(tmp_path)))
    index.refresh()
    dropped = 0
    for moved in ({}, {"min_aesthetic": 6.0}, {"min_sharpness": 150.0, "max_nsfw_prob": None}, {"min_sharpness": 1e9}):
        counted = whole_corpus(index, {limit.setting: limit.value for limit in limits(settings)} | moved)
        chosen = selected(str(tmp_path), replace(settings, **moved)).to_pylist()
        reasons = [row["reject_reason"] for row in chosen]
        assert {rule["reason"]: rule["dropped"] for rule in counted["rules"]} == {
            reason: reasons.count(reason) for reason in later_reasons(settings)
        }
        assert counted["kept"] == counted["rules"][-1]["left"] == reasons.count(None)
        assert sum(bucket["rows"] for bucket in counted["buckets"]) == counted["kept"]
        dropped += sum(rule["dropped"] for rule in counted["rules"])
    index.close()
    assert dropped > 0


def _with_clusters(made: dict[str, Any]) -> None:
    for at, row in enumerate(made["duplicates"]):
        row["semantic_cluster"] = None if at % 9 == 0 else at % 4
    for at, row in enumerate(made["features"]):
        row["sharpness"] = row["sharpness"] and 10.0 * (at // 3)  # ties
        row["clip_similarity"] = 0.9 if at % 8 == 7 else at / 100
    for at, row in enumerate(made["scores"]):
        row["blocklist_hit"] = at % 8 == 7
        row["clip_similarity"] = None if at % 8 == 7 else at / 100


def _without_language_rule(made: dict[str, Any]) -> None:
    for row in made["captions"]:
        row["caption_reason"] = None


def test_what_was_taken_down_is_nowhere(tmp_path):
    root = write_root(str(tmp_path))
    gone = next(row for row in selected(str(tmp_path), SETTINGS).to_pylist() if row["keep"])["uid"]
    index = Index(root)
    index.refresh()
    lists = shown(index, {}).lists
    assert gone in {tile["uid"] for tile in lists.page({}, 0, 200)["tiles"]}
    kept = what_if(index, limits_asked(index, {}))["kept"]
    write_taken_down(root, TakenDown(uids=frozenset([gone])))
    index.refresh()
    assert gone not in {tile["uid"] for tile in lists.page({}, 0, 200)["tiles"]}
    assert what_if(index, limits_asked(index, {}))["kept"] == kept - 1
    index.close()


def test_buckets_are_those_of_the_export(index):
    rows = index.rows("SELECT height_px, width_px, bucket FROM board WHERE bucket IS NOT NULL")
    assert len(rows) == ROWS - 2
    for height_px, width_px, bucket in rows:
        assert index.buckets[bucket] == nearest(height_px, width_px, index.buckets)
    assert len({bucket for _, _, bucket in rows}) > 3


def test_samples_near_a_cut_off_lie_on_their_sides(index):
    by_setting = {limit.setting: limit for limit in limits(SETTINGS)}
    found = near(index, by_setting["min_aesthetic"], 5.0, 4)
    assert [round(tile["value"], 3) for tile in found["dropped"]] == [4.867, 4.733, 4.6, 4.467]
    assert [round(tile["value"], 3) for tile in found["kept"]] == [5.0, 5.267, 5.4, 5.533]  # 5.133: another language
    found = near(index, by_setting["max_nsfw_prob"], 0.5, 4)
    assert [tile["uid"] for tile in found["dropped"]] == [uid(UNSAFE)]
    assert [tile["is_unsafe"] for tile in found["dropped"] + found["kept"]] == [True, False, False, False, False]


def test_what_if_is_saved_as_a_config_that_selection_takes(tmp_path):
    write_root(str(tmp_path / "root"), rows=20)
    with serving("--root", str(tmp_path / "root")) as address:
        client = Client(address)
        status, _, body = client.ask("/api/save", {"min_aesthetic": 6.5, "min_side_px": 260, "max_aspect": 0.5})
        assert status == 400 and b"max_aspect" in body, body
        status, _, body = client.ask("/api/save", {"min_aesthetic": 6.5, "min_side_px": 260, "min_entropy_bits": "off"})
        assert status == 200, body
    said = json.loads(body)
    saved = yaml.safe_load((tmp_path / "root" / said["file"]).read_text())
    expected = {"min_aesthetic": 6.5, "min_side_px": 260, "min_entropy_bits": None}
    assert saved["selection"].items() >= expected.items()
    assert SelectionConfig(**saved["selection"]).min_aesthetic == 6.5
    assert yaml.safe_load(said["yaml"]) == {"selection": saved["selection"]}
    done = run("pipelines/selection.py", "--config", str(tmp_path / "root" / said["file"]), "--print_config")
    assert yaml.safe_load(done.stdout)["selection"].items() >= expected.items()


def test_histograms_hold_every_value_once(client):
    for name in [number["name"] for number in client.get("distributions")["numbers"]]:
        said = client.get("histogram", name=name)
        assert sum(bin["kept"] + bin["dropped"] + bin["undecided"] for bin in said["bins"]) == said["rows"], name
    said = client.get("histogram", name="aesthetic")
    assert (said["cut_offs"], said["rows"]) == ([{"value": 4.0, "drops": "below"}], ROWS - 2)
    assert sum(bin["kept"] for bin in said["bins"]) == client.get("funnel")["rows_kept"]
    number = next(n for n in client.get("distributions")["numbers"] if n["name"] == "aesthetic")
    assert (number["range"], number["direction"], number["model"]) == ("1..10", "higher is better", "a head")


def test_what_selection_computes_is_drawn_and_listed_as_well(client, index):
    drawn = {name: client.get("histogram", name=name) for name in ("shorter_side_px", "aspect", "caption_chars")}
    assert [drawn[name]["cut_offs"] for name in drawn] == [
        [{"value": 200, "drops": "below"}],
        [{"value": 3.0, "drops": "above"}],
        [],
    ]
    sides = index.rows("SELECT width_px, height_px, length(caption_clean) FROM board WHERE NOT hidden")
    expected = {
        "shorter_side_px": [(w and min(w, h)) for w, h, _ in sides],
        "aspect": [(w and np.float32(max(w, h)) / np.float32(min(w, h))) for w, h, _ in sides],
        "caption_chars": [chars for _, _, chars in sides],
    }
    for name, values in expected.items():
        there = sorted(value for value in values if value is not None)
        middle = float(there[len(there) // 2])
        assert client.get("samples", score=name, high=middle)["rows"] == sum(value <= middle for value in there), name
    (first,) = client.get("samples", sort="shorter_side_px", count=1)["tiles"]
    assert min(first["width_px"], first["height_px"]) == min(filter(None, expected["shorter_side_px"]))


def test_every_cut_off_of_a_number_is_drawn(tmp_path):
    both = (Threshold(column="sharpness", min=20.0, max=400.0), Threshold(column="num_words", max=9))
    write_root(str(tmp_path), rows=20, settings=replace(SETTINGS, thresholds=both))
    index = Index(Root(str(tmp_path)))
    index.refresh()
    drawn = [
        QUESTIONS["histogram"](shown(index, {}), {"name": name})["cut_offs"] for name in ("sharpness", "num_words")
    ]
    index.close()
    low, high = {"value": 20.0, "drops": "below"}, {"value": 400.0, "drops": "above"}
    assert drawn == [[low, high], [{"value": 9, "drops": "above"}]]


def test_outliers_get_bins_of_their_own(tmp_path):
    def with_outliers(made: dict[str, Any]) -> None:
        for at, row in enumerate(made["features"]):
            row["sharpness"] = 1e9 if at == 399 else -1e9 if at == 398 else 100.0 + at % 50

    write_root(str(tmp_path), rows=400, change=with_outliers)
    index = Index(Root(str(tmp_path)))
    index.refresh()
    said = QUESTIONS["histogram"](shown(index, {}), {"name": "sharpness"})
    index.close()
    inner = [bin for bin in said["bins"] if 0 <= bin["place"] < 40]
    assert sum(bin["kept"] + bin["dropped"] for bin in inner) == 398
    assert all(bin["low"] >= 99 and bin["high"] <= 152 for bin in inner)
    assert (said["bins"][0]["low"], said["bins"][-1]["high"]) == (-1e9, 1e9)


def test_what_is_no_number_is_dropped_by_no_cut_off(tmp_path):
    def without_numbers(made: dict[str, Any]) -> None:
        for at, row in enumerate(made["scores"]):
            row["nsfw_prob"] = (float("nan"), 0.3, 0.31)[at % 3]

    settings = replace(SETTINGS, max_nsfw_prob=0.3)
    root = write_root(str(tmp_path), change=without_numbers, settings=settings)
    index = Index(root)
    index.refresh()
    counted = what_if(index, limits_asked(index, {}))
    drawn = QUESTIONS["histogram"](shown(index, {}), {"name": "nsfw_prob"})
    found = near(index, {limit.setting: limit for limit in limits(settings)}["max_nsfw_prob"], 0.3, 20)
    index.close()
    chosen = selected(str(tmp_path), settings).to_pylist()
    assert counted["kept"] == sum(row["keep"] for row in chosen)
    assert (drawn["rows"], drawn["highest"]) == (ROWS * 2 // 3, pytest.approx(0.31))
    reasons = {row["uid"]: row["reject_reason"] for row in chosen}
    assert {reasons[tile["uid"]] for tile in found["kept"]} == {None, "low_aesthetic"}
    assert {reasons[tile["uid"]] for tile in found["dropped"]} == {"unsafe"}


def test_a_minimum_of_whole_numbers_is_saved_as_it_was_counted(index):
    values = limits_asked(index, {"min_side_px": "299.5"})
    kept = {at: what_if(index, limits_asked(index, {"min_side_px": at}))["kept"] for at in ("299.5", "300", "301")}
    assert with_limits(SETTINGS, values).min_side_px == 300
    assert kept["299.5"] == kept["300"] > kept["301"]


def test_what_makes_no_sense_is_refused(client):
    assert client.ask("/api/counts?min_sharpness=1e300")[0] == 400
    assert client.ask("/api/overview", Host="[")[0] == 421
    assert client.ask("/api/save", {}, Origin="http://[")[0] == 403
    assert client.ask("/api/label", {"score": "aesthetic", "uid": "\ud800", "label": "good"})[0] == 404
    connection = HTTPConnection("127.0.0.1", client.split.port, timeout=30)
    connection.request("POST", "/api/save", "[" * 2000 + "]" * 2000, {"content-type": "application/json"})
    assert connection.getresponse().status == 400
    connection.close()


def test_any_place_of_a_list_is_found(client):
    whole = [tile["uid"] for tile in client.get("samples", first=0, count=200)["tiles"]]
    assert len(whole) == ROWS - 1
    assert [tile["uid"] for tile in client.get("samples", first=50, count=5)["tiles"]] == whole[50:55]
    falling = client.get("samples", sort="aesthetic", descending="yes", first=0, count=3)["tiles"]
    assert [tile["uid"] for tile in falling] == [uid(59), uid(58), uid(57)]
    assert client.get("samples", text="THING 17 in")["tiles"][0]["uid"] == uid(17)
    assert client.get("samples", score="aesthetic", low=8, high=9)["rows"] == 7  # 53 to 59
    assert client.get("samples", score="width_px", low=300, high=304)["rows"] == 2
    assert client.get("samples", score="width_px", low=300, below=304)["rows"] == 1
    assert client.get("samples", kept="undecided")["rows"] == 0
    assert client.get("samples", language="de")["rows"] == 6


def test_one_sample_tells_its_story(client):
    said = client.get("sample", uid=uid(COPY))
    assert [table["table"] for table in said["history"]] == list(SCHEMAS)
    told = {table["table"]: {c["name"]: c for c in table["columns"]} for table in said["history"]}
    assert told["scores"]["aesthetic"]["range"] == "1..10"
    assert told["selection"]["reject_reason"]["value"] == "duplicate_perceptual"
    assert [(m["uid"], m["is_survivor"], m["distance"]) for m in said["duplicates"]] == [
        (uid(0), True, None),
        (uid(COPY), False, 2.0),
    ]
    assert client.get("sample", uid=uid(HOSTILE_AT))["tile"]["caption"] == HOSTILE


def test_more_like_this_is_brute_force_on_the_embeddings(client, made_folder):
    files = sorted((made_folder / "tables/features").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file, columns=["uid", "embedding"]).to_pylist()]
    vectors = {row["uid"]: np.array(row["embedding"], np.float64) for row in rows if row["embedding"] is not None}
    del vectors[uid(BLOCKED)]
    own = vectors.pop(uid(0))
    best = sorted(vectors, key=lambda other: -float(vectors[other] @ own))[:5]
    found = client.get("like", uid=uid(0))
    assert [tile["uid"] for tile in found["tiles"]][:5] == best
    assert (found["compared"], found["of"]) == (ROWS - 2, ROWS - 2)


def test_clusters_and_their_sizes(client):
    assert client.get("cluster-sizes")["sizes"] == [{"low": 2, "high": 2, "clusters": 1, "members": 2}]
    found = client.get("clusters", kind="perceptual")
    assert found["total"] == 1
    assert [tile["uid"] for tile in found["clusters"][0]["tiles"]] == [uid(0), uid(COPY)]
    assert client.get("clusters", at_least=3)["total"] == 0
    assert client.get("clusters", kind="exact")["total"] == 0


def test_labels_are_written_as_calibration_reads_them(tmp_path):
    write_root(str(tmp_path), rows=20)
    with serving("--root", str(tmp_path)) as address:
        client = Client(address)
        queue = client.get("label-queue", score="aesthetic", count=3)
        assert queue["around"] == 4.0
        values = [tile["value"] for tile in queue["tiles"]]
        assert values == sorted(values, key=lambda value: abs(value - 4.0))
        for tile, label in zip(queue["tiles"], ("good", "bad", "good"), strict=True):
            assert client.ask("/api/label", {"score": "aesthetic", "uid": tile["uid"], "label": label})[0] == 200
        client.ask("/api/label", {"score": "aesthetic", "uid": queue["tiles"][2]["uid"], "label": None})
        wrong = {"score": "aesthetic", "uid": queue["tiles"][0]["uid"], "label": "perhaps"}
        assert client.ask("/api/label", wrong)[0] == 400
        assert queue["tiles"][2]["uid"] in [t["uid"] for t in client.get("label-queue", score="aesthetic")["tiles"]]
        curve = client.get("label-curve", score="aesthetic")["points"]
        bad = {"score": "nsfw_prob", "uid": uid(UNSAFE), "label": "bad"}
        assert client.ask("/api/label", bad)[0] == 200
        assert [point["good"] for point in client.get("label-curve", score="nsfw_prob")["points"]] == [0.0]
    first, second = queue["tiles"][:2]
    expected = f"uid,label\n{first['uid']},1\n{second['uid']},0\n"
    assert (tmp_path / "labels/aesthetic.csv").read_text() == expected
    assert read_labels(tmp_path / "labels/aesthetic.csv") == {first["uid"]: True, second["uid"]: False}
    assert read_labels(tmp_path / "labels/nsfw_prob.csv") == {uid(UNSAFE): True}  # of a high score
    assert [(point["good"], point["labels"]) for point in curve] == [
        (float(tile is first), 1) for tile in sorted((first, second), key=lambda tile: tile["value"])
    ]


def test_only_new_points_of_a_training_run_are_sent(tmp_path):
    write_root(str(tmp_path), rows=20)
    metrics = write_training(tmp_path, "base", 10)
    index = Index(Root(str(tmp_path)))
    index.refresh()
    this = shown(index, {})
    first = QUESTIONS["training-points"](this, {"run": "base"})
    assert [step for step, _ in first["series"]["loss"]] == list(range(1, 11))
    assert first["series"]["val_loss"] == [[10, 0.5]]
    with metrics.open("a") as file:
        file.write('{"step": 11, "loss": NaN, "val_loss_by_timestep": [0.5, 0.25]}\n{"step": 12, "lo')
    then = QUESTIONS["training-points"](this, {"run": "base", "since": str(first["next"])})
    assert then["series"] == {
        "loss": [[11, None]],
        "val_loss_by_timestep[0]": [[11, 0.5]],
        "val_loss_by_timestep[1]": [[11, 0.25]],
    }
    again = QUESTIONS["training-points"](this, {"run": "base", "since": str(then["next"])})
    index.close()
    assert (again["series"], again["next"]) == ({}, then["next"])


def test_grids_are_listed_by_step_and_served_as_pixels_alone(tmp_path):
    write_root(str(tmp_path), rows=20)
    write_training(tmp_path, "base", 10)
    for step, colour in ((40, "blue"), (0, "red")):
        write_grid(tmp_path, "base", step, colour)
    (tmp_path / "train/base/grids/.step-00000080.png.partial").write_bytes(b"half")
    with serving("--root", str(tmp_path)) as address:
        client = Client(address)
        (run,) = client.get("training-runs")["runs"]
        status, headers, body = client.ask("/grids/base/40?of=")
        gone = [client.ask(path)[0] for path in ("/grids/base/41", "/grids/nobody/0", "/grids/base/40?of=x")]
        outside = client.ask("/grids/..%2F..%2Fbase/40")[0]
    assert run["grids"] == [0, 40]
    assert (status, headers["content-type"]) == (200, "image/png")
    with Image.open(io.BytesIO(body)) as image:
        assert image.getpixel((0, 0)) == (0, 0, 255)
    assert gone == [404, 404, 404]
    assert outside == 404


def test_what_was_made_again_is_read_again(tmp_path):
    root = write_root(str(tmp_path), rows=20)
    index = Index(root)
    index.refresh()
    version = index.version
    index.refresh()
    assert index.version == version
    write_root(str(tmp_path), rows=20, change=lambda made: [row.update(aesthetic=9.0) for row in made["scores"]])
    index.refresh()
    assert index.rows("SELECT count(*), min(aesthetic) FROM board") == [(20, 9.0)]
    index.close()


def test_a_file_that_crashed_a_decoder_is_not_decoded_again(tmp_path, monkeypatch):
    def with_a_crash(made: dict[str, Any]) -> None:
        made["features"][11]["status"] = "decoder_crashed"

    write_root(str(tmp_path), rows=20, change=with_a_crash)
    index = Index(Root(str(tmp_path)))
    index.refresh()
    decoded = []
    monkeypatch.setattr("pipelines.dashboard_server.pictures.encode", lambda data, *_: decoded.append(data) or b"webp")
    pictures = Pictures(index, 10)
    at = dict(index.rows("SELECT uid, number FROM board"))
    assert pictures.webp(at[uid(12)], 96) == b"webp"
    with pytest.raises(UnreadableImage) as raised:
        pictures.webp(at[uid(11)], 96)
    assert (raised.value.status, len(decoded)) == ("decoder_crashed", 1)
    index.close()


def test_a_kept_index_is_used_again(tmp_path):
    root, file = write_root(str(tmp_path / "root"), rows=20), str(tmp_path / "index.duckdb")
    for expected in (2, 0):
        index = Index(root, file=file)
        index.refresh()
        assert (index.version, index.rows("SELECT count(*) FROM board")) == (expected, [(20,)])
        index.close()


def test_an_unfinished_run_is_shown_as_far_as_it_is(tmp_path):
    root = Root(str(tmp_path))
    made = made_rows(root, 20)
    publish_table(root, "samples", pa.Table.from_pylist(made["samples"], schema=SCHEMAS["samples"]))
    features = pa.Table.from_pylist(made["features"], schema=SCHEMAS["features"])
    publish_table(root, "features", features, finished=False)
    index = Index(root, unchecked=True)
    index.refresh()
    this = shown(index, {})
    told = QUESTIONS["overview"](this, {})
    for name, question in QUESTIONS.items():
        asked = {"name": "host" if name == "most-frequent" else "aesthetic", "score": "aesthetic", "uid": uid(0)}
        asked |= {"setting": "min_aesthetic", "value": "5", "by": "source"}
        if name not in ("training-points", "samples"):
            question(this, asked)
    found = QUESTIONS["funnel"](this, {})
    rows = {kept: QUESTIONS["samples"](this, {"kept": kept})["rows"] for kept in ("undecided", "yes")}
    index.close()
    assert rows["yes"] == 0 < rows["undecided"]
    assert "table captions is not there yet: run python pipelines/captions.py" in told["notes"]
    assert "table features is being made: 2 fragments so far; python pipelines/embed.py goes on" in told["notes"]
    assert (found["rows_in"], found["rows_kept"], found["undecided"]) == (20, 0, 18)


def test_nothing_to_look_at_is_one_clear_line(tmp_path):
    done = run("pipelines/dashboard.py", "--root", str(tmp_path / "none"), check=False)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0, done.stderr
    assert "table samples is not there yet: run python pipelines/ingest.py" in done.stderr


def test_tables_and_pictures_in_s3(s3):
    root = write_root("s3://bucket/made", rows=20)
    with serving("--root", root.url) as address:
        client = Client(address)
        found = client.ask("/api/refresh", {})
        assert json.loads(found[2]) == {"rows": 20}
        assert client.get("funnel")["rows_in"] == 20
        assert client.ask(f"/picture/{numbers(client)[uid(0)]}?side=96")[0] == 200
        assert len(client.get("like", uid=uid(0))["tiles"]) == 16
        assert client.ask("/api/label", {"score": "aesthetic", "uid": uid(0), "label": "good"})[0] == 200
    assert s3.cat_file("bucket/made/labels/aesthetic.csv").decode() == f"uid,label\n{uid(0)},1\n"
    flags = ("--export", "s3://bucket/out/page.html", "--parquet", "s3://bucket/out/rows.parquet")
    done = run("pipelines/dashboard.py", "--root", root.url, *flags)
    assert "page     s3://bucket/out/page.html" in done.stdout
    assert s3.cat_file("bucket/out/page.html").startswith(b"<!doctype html>")
    with s3.open("bucket/out/rows.parquet") as file:
        assert uid(0) in pq.read_table(file, columns=["uid"])["uid"].to_pylist()


def test_two_runs_beside_each_other(made_folder, tmp_path):
    write_root(str(tmp_path / "other"), rows=30)
    with serving("--root", str(made_folder), "--beside", f"[{tmp_path / 'other'}]") as address:
        client = Client(address)
        client.ask("/api/refresh", {})
        found = client.get("funnel")
    assert [(said["name"], said["rows_in"]) for said in (found, *found["beside"])] == [("made", ROWS), ("other", 30)]


def test_the_exported_page_keeps_to_its_limit(index):
    this = shown(index, {})
    whole = page(this, 120.0)
    assert len(whole) < 20_000_000
    assert uid(UNSAFE).encode() not in whole and uid(BLOCKED).encode() not in whole
    assert b"<script>window.harmed" not in whole and b"SECRETCAMERA" not in whole
    pictures = whole.count(b"data:image/webp")
    small = page(this, 120.0, most_bytes=len(whole) - 20_000)
    assert len(small) <= len(whole) - 20_000
    assert 0 < small.count(b"data:image/webp") < pictures
    with pytest.raises(TooLarge):
        page(this, 120.0, most_bytes=1000)


def test_the_parquet_for_other_explorers(made_folder, tmp_path):
    done = run("pipelines/dashboard.py", "--root", str(made_folder), "--parquet", str(tmp_path / "out.parquet"))
    assert done.stdout.split()[-2:] == ["57", "rows"]
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    by_uid = {row["uid"]: row for row in rows}
    assert set(by_uid) == {uid(n) for n in range(ROWS) if n not in (BLOCKED, BROKEN, GONE)}
    assert by_uid[uid(UNSAFE)]["image"] is None
    with Image.open(io.BytesIO(by_uid[uid(0)]["image"]["bytes"])) as image:
        assert max(image.size) == 192
    assert len(by_uid[uid(0)]["embedding"]) == 8
    assert (by_uid[uid(COPY)]["reason"], by_uid[uid(59)]["keep"]) == ("duplicate_perceptual", True)
    read = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    drawn = read.cast_column("image", datasets.Image()).filter(lambda uid_: uid_ == uid(0), input_columns="uid")[0]
    assert drawn["image"].size == Image.open(io.BytesIO(by_uid[uid(0)]["image"]["bytes"])).size


def test_a_local_parquet_is_written_once_on_the_disk_of_its_target(index, tmp_path, monkeypatch):
    target = tmp_path / "out" / "rows.parquet"
    drafts: list[tuple[Path, int]] = []

    def written(_index: Index, file: Path, _max_megapixels: float) -> int:
        file.write_bytes(b"rows")
        drafts.append((file.parent, file.stat().st_ino))
        if len(drafts) == 2:
            raise OSError("the disk is full")
        return 4

    monkeypatch.setattr(open_elsewhere, "write", written)
    settings = DashboardConfig(root=index.root.url, parquet=str(target))
    write_elsewhere(settings, index, {})
    assert drafts == [(target.parent, target.stat().st_ino)], "renamed, not copied"
    assert target.read_bytes() == b"rows"
    with pytest.raises(OSError, match="the disk is full"):
        write_elsewhere(settings, index, {})
    assert list(target.parent.iterdir()) == [target], "no draft is left"


def test_a_parquet_without_embeddings_names_the_step(tmp_path):
    root = write_root(str(tmp_path / "root"), rows=20)
    root.remove("tables/features", recursive=True)
    done = run("pipelines/dashboard.py", "--root", root.url, "--parquet", str(tmp_path / "out.parquet"), check=False)
    assert (done.returncode, done.stderr.strip().count("\n")) == (2, 0), done.stderr
    assert "table features is not there yet: run python pipelines/embed.py" in done.stderr
    assert not (tmp_path / "out.parquet").exists()


def test_no_page_writes_markup():
    folder = Path(__file__).resolve().parents[2] / "pipelines/dashboard_page"
    for path in folder.glob("*.js"):
        if path.name != "vega.js":
            text = path.read_text()
            assert not any(word in text for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(")), path


def test_only_the_dashboard_imports_a_web_server():
    found = names_importing("starlette") | names_importing("uvicorn")
    assert {
        name for name in found if not name.startswith(("pipelines/dashboard_server/", "pipelines/dashboard.py"))
    } == set()
    assert "pipelines/dashboard_server/app.py" in found


def test_a_file_that_goes_away_while_it_is_read_is_told_until_it_is_back(tmp_path):
    root = write_root(str(tmp_path / "root"))
    file = tmp_path / "root/tables/features/made-00001.parquet"
    index = Index(root)
    file.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        index.refresh_in_background()
    assert index.error is not None and str(tmp_path) not in index.error
    app = application(shown(index, {}), names=(), token=None, max_megapixels=1.0)
    asking = TestClient(app, base_url="http://127.0.0.1")
    assert asking.post("/api/refresh", json={}).status_code == 409
    (tmp_path / "away").rename(file)
    assert asking.post("/api/refresh", json={}).json() == {"rows": ROWS}
    assert asking.get("/api/overview").json()["error"] is None
    index.close()


def test_a_cut_off_of_nothing_blurs_everything_above_it(tmp_path):
    index = Index(write_root(str(tmp_path), rows=20, settings=replace(SETTINGS, max_nsfw_prob=0.0)))
    index.refresh()
    tiles = shown(index, {}).lists.page({}, 0, 200)["tiles"]
    index.close()
    assert {tile["uid"] for tile in tiles if not tile["is_unsafe"]} == {uid(BROKEN), uid(GONE)}


def test_pages_of_clusters_hold_each_once(tmp_path):
    def in_pairs(made: dict[str, Any]) -> None:
        for at, row in enumerate(made["duplicates"]):
            first, is_copy = uid(at // 2 * 2), at % 2 == 1
            row |= {"cluster_id": first, "survivor_uid": first, "is_survivor": not is_copy}
            row |= {"kind": "exact" if is_copy else None, "distance": 0.0 if is_copy else None}

    index = Index(write_root(str(tmp_path), rows=600, change=in_pairs))
    index.refresh()
    for order in ("largest", "smallest", "farthest"):
        pages = [
            QUESTIONS["clusters"](shown(index, {}), {"order": order, "first": str(first), "count": "50"})["clusters"]
            for first in range(0, 300, 50)
        ]
        assert len({one["cluster_id"] for page in pages for one in page}) == 300, order
    index.close()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--export", "s4://bucket/page.html"), "export = s4://bucket/page.html: Protocol not known"),
        (("--beside", "[s4://bucket]"), "beside = s4://bucket: Protocol not known"),
        (("--index", "README.md"), "index = README.md: IO Error"),
        (("--host", "no.such.host.invalid"), "host = no.such.host.invalid: "),
    ],
)
def test_a_place_of_no_use_is_one_line(made_folder, flags, told):
    done = run("pipelines/dashboard.py", "--root", str(made_folder), "--port", "0", *flags, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"pipelines/dashboard.py: {told}")
