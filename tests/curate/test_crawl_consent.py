"""Consent: headers, robots.txt, tdmrep.json, C2PA; nothing that is opted out is read, and some of it not even asked."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from dataclasses import replace

import cbor2
import pytest
from PIL import Image

from curate import sample
from curate.config import IngestConfig
from curate.crawl import c2pa
from curate.crawl.consent import (
    content_usage_opt_out,
    is_reserved,
    read_tdmrep,
    tdm_reserved,
    usage_rules,
    x_robots_opt_out,
)
from curate.crawl.fetcher import Fetcher
from curate.crawl.limits import Limits
from tests.conftest import encoded, picture
from tests.curate.crawl_origin import JPEG, Answer, origin, redirect

SETTINGS = IngestConfig(
    allowed_networks=("127.0.0.0/8",), timeout_s=0.4, deadline_s=2, retries=0, host_failures=1000, contact="a@b.example"
)


@pytest.mark.parametrize(
    ("values", "directive"),
    [
        ([], None),
        (["noai"], "noai"),
        (["nofollow, NoImageAI"], "noimageai"),
        (["darkroom: noai"], "noai"),
        (["Darkroom: nofollow, noml"], "noml"),
        (["otherbot: noai, noindex"], None),
        (["otherbot: noai", "noindex"], "noindex"),
        (["otherbot: noai, darkroom: noimageindex"], "noimageindex"),
        (["none"], "noindex"),
        (["all"], None),
        (["max-image-preview:large, noai"], "noai"),
        (["unavailable_after: Wed, 25 Jun 2031 15:00:00 PST, noindex"], "noindex"),
        (["noarchive"], None),
    ],
)
def test_x_robots_tag(values, directive):
    assert x_robots_opt_out(values, "darkroom", SETTINGS.opt_out_directives) == directive


@pytest.mark.parametrize(
    ("values", "use"),
    [
        ([], None),
        (["train-ai=n"], "train-ai"),
        (["train-ai=y, search=n"], None),
        (["search=y", "Train-AI = n;ext=1"], "train-ai"),
        (["genai=n"], "genai"),
    ],
)
def test_content_usage(values, use):
    assert content_usage_opt_out(values) == use


def test_tdm_reservation_header():
    assert [tdm_reserved(values) for values in ([], ["0"], ["1"], [" 1 "], ["0", "1"])] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_tdmrep_locations():
    rules = [
        {"location": "/art/*.jpg$", "tdm-reservation": 1},
        {"location": "/free", "tdm-reservation": 0},
        {"location": "/closed", "tdm-reservation": "1"},
    ]
    locations = read_tdmrep(json.dumps(rules))
    expected = {"/art/a/b.jpg": True, "/art/b.jpg?x": False, "/free/x": False, "/closed/x": True, "/other": False}
    assert {path: is_reserved(path, locations) for path in expected} == expected
    with pytest.raises(ValueError, match="not a list"):
        read_tdmrep('{"tdm-reservation": 1}')


@pytest.mark.parametrize(
    ("location", "reserved"),
    [
        ("/", ["/", "/a", "/a/b.jpg", "/ab/a"]),
        ("/a", ["/a", "/a/b.jpg", "/ab/a"]),
        ("/a$", ["/a"]),
        ("*", ["/", "/a", "/a/b.jpg", "/ab/a"]),
        ("/*b", ["/a/b.jpg", "/ab/a"]),
        ("/a*a$", ["/ab/a"]),
        ("/**b**.jpg$", ["/a/b.jpg"]),
        ("*$", ["/", "/a", "/a/b.jpg", "/ab/a"]),
    ],
)
def test_a_location_is_a_prefix_with_wildcards(location, reserved):
    assert [path for path in ("/", "/a", "/a/b.jpg", "/ab/a") if is_reserved(path, [location])] == reserved


def test_a_location_of_many_wildcards_is_decided_at_once():
    started = time.monotonic()
    assert not is_reserved("/" + "a" * 2000, ["/" + "*a" * 30 + "*b"])
    assert time.monotonic() - started < 0.1


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def labelled(label: str, *boxes: bytes) -> bytes:
    return box(b"jumb", box(b"jumd", bytes(16) + b"\x03" + label.encode() + b"\0") + b"".join(boxes))


def store(entries: object, label: str = "c2pa.training-mining", padding: int = 0) -> bytes:
    """Return a C2PA manifest store with one training-mining assertion, as other programs write it."""
    assertion = labelled(label, box(b"cbor", cbor2.dumps({"entries": entries})))
    thumbnail = labelled("c2pa.thumbnail.claim.jpeg", box(b"bidb", bytes(padding)))
    return labelled("c2pa", labelled("urn:uuid:1", labelled("c2pa.assertions", thumbnail, assertion)))


def in_jpeg(manifest: bytes, segment: int = 60_000) -> bytes:
    parts = [manifest[8:][at : at + segment] for at in range(0, len(manifest) - 8, segment)]
    app11 = b""
    for number, part in enumerate(parts, start=1):
        content = b"JP" + struct.pack(">HI", 1, number) + manifest[:8] + part
        app11 += b"\xff\xeb" + struct.pack(">H", len(content) + 2) + content
    return JPEG[:2] + app11 + JPEG[2:]


def in_png(manifest: bytes) -> bytes:
    data = encoded(picture(1), "PNG")
    chunk = struct.pack(">I", len(manifest)) + b"caBX" + manifest + struct.pack(">I", zlib.crc32(b"caBX" + manifest))
    return data[:33] + chunk + data[33:]


def in_webp(manifest: bytes) -> bytes:
    data = (
        encoded(picture(1), "WEBP")
        + b"C2PA"
        + struct.pack("<I", len(manifest))
        + manifest
        + b"\0" * (len(manifest) % 2)
    )
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


NO_TRAINING = {"c2pa.ai_training": {"use": "notAllowed"}, "c2pa.ai_inference": {"use": "allowed"}}


@pytest.mark.parametrize("inside", [in_jpeg, in_png, in_webp])
def test_c2pa_assertions_inside_files(inside):
    data = inside(store(NO_TRAINING, padding=200_000))
    Image.open(io.BytesIO(data)).load()
    said = c2pa.training_mining(data)
    assert said == {"ai_training": "notAllowed", "ai_inference": "allowed"}
    assert c2pa.opt_out(said) == "ai_training"


def test_what_c2pa_assertions_mean():
    def use(entries: object, label: str = "c2pa.training-mining") -> str | None:
        return c2pa.opt_out(c2pa.training_mining(in_png(store(entries, label))))

    assert use({"c2pa.ai_training": {"use": "allowed"}}) is None
    assert use({"c2pa.ai_inference": {"use": "notAllowed"}}) is None
    assert use({"cawg.data_mining": {"use": "constrained"}}, "cawg.training-mining") == "data_mining"
    assert use({"c2pa.ai_generative_training": {"use": "notAllowed"}}, "c2pa.training-mining__1") is not None
    assert use("broken") == "assertion"
    assert use({"c2pa.ai_training": {"use": 10**6000}}) == "assertion"
    assert use(NO_TRAINING, "c2pa.actions") is None
    assert c2pa.training_mining(JPEG) == {}


def test_what_assertions_say_fits_a_column_of_text():
    said = '{"entries": {"c2pa.ai_training": {"use": "\\ud800' + "x" * 5000 + '"}}}'
    manifest = labelled("c2pa", labelled("c2pa.training-mining", box(b"json", said.encode())))
    with origin({"/a": Answer(body=in_png(manifest))}) as server:
        _, outcome = Fetcher(SETTINGS, Limits(4).exchange).fetch(f"{server.url}/a")
    assert outcome.status == sample.OPT_OUT_C2PA
    assert outcome.signals["c2pa_training_mining"] == "ai_training=?" + "x" * 487
    assert outcome.error == "ai_training: ?" + "x" * 486


@pytest.mark.parametrize("inside", [in_jpeg, in_png, in_webp])
def test_hostile_files_end_quickly(inside):
    data = inside(store(NO_TRAINING))
    for at in range(2, len(data), 7):
        c2pa.training_mining(data[:at])
        c2pa.training_mining(data[:at] + b"\xff" * 8 + data[at + 8 :])
        c2pa.training_mining(data[:at] + b"\0" * 8 + data[at + 8 :])


def statuses(paths: list[str], answers: dict[str, Answer], **changes: object) -> tuple[dict[str, str], list[str]]:
    """Return each path's status under the settings, and what the origin was asked for."""
    with origin(answers) as server:
        fetcher = Fetcher(replace(SETTINGS, **changes), Limits(4).exchange)
        found = {path: fetcher.fetch(server.url + path)[1].status for path in paths}
        return found, [path for _, path in server.log]


def test_robots_txt_is_read_once_and_before_the_get():
    rules = b"User-agent: *\nDisallow: /\n\nUser-agent: Darkroom\nDisallow: /private\nAllow: /private/open\n"
    answers = {"/robots.txt": Answer(body=rules)} | {
        path: Answer() for path in ("/a", "/private/b", "/private/open/c", "/d")
    }
    paths = [path for path in answers if path != "/robots.txt"]
    found, asked = statuses(paths, answers, consent=("robots_txt",))
    assert found == {path: sample.OK for path in paths} | {"/private/b": sample.OPT_OUT_ROBOTS_TXT}
    assert asked == ["/robots.txt", "/a", "/private/open/c", "/d"]
    found, asked = statuses(paths, answers, consent=("robots_txt",), user_agent_token="otherbot")
    assert set(found.values()) == {sample.OPT_OUT_ROBOTS_TXT}
    assert asked == ["/robots.txt"]
    found, asked = statuses(paths, answers, consent=())
    assert set(found.values()) == {sample.OK}
    assert asked == paths


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer(status=404, body=b""), sample.OK),
        (Answer(status=403, body=b""), sample.OK),
        (redirect("/robots.txt"), sample.OK),
        (Answer(status=500, body=b""), sample.OPT_OUT_UNKNOWN),
        (Answer(status=503, body=b""), sample.OPT_OUT_UNKNOWN),
        (Answer(act="silent"), sample.TIMEOUT),
        (Answer(act="reset", body=bytes(500)), sample.CONNECTION),
    ],
)
def test_a_robots_txt_that_cannot_be_read(answer, status):
    found, asked = statuses(["/a", "/b"], {"/robots.txt": answer, "/a": Answer(), "/b": Answer()})
    assert set(found.values()) == {status}
    assert ("/a" in asked) == (status == sample.OK)


def test_robots_txt_holds_for_where_a_redirect_leads():
    closed = {"/robots.txt": Answer(body=b"User-agent: *\nDisallow: /x\n"), "/x": Answer()}
    with origin(closed, ip="127.0.0.2") as other, origin({"/a": redirect(f"{other.url}/x")}) as server:
        _, outcome = Fetcher(SETTINGS, Limits(4).exchange).fetch(f"{server.url}/a")
        assert outcome.status == sample.OPT_OUT_ROBOTS_TXT
        assert other.asked("/x") == 0


USAGE = """User-agent: *
Allow: /
Disallow: /never/
Content-Usage: train-ai=n
Content-Usage: /ai-ok/ train-ai=y
content-usage :\t/ai-ok/not/\tsearch=y, train-ai=n  # deeper
Content-Usage: /twice/ train-ai=y
Content-Usage: /twice/ train-ai=n
Content-Usage: /other/*.png$ search=n

User-agent: ExampleBot
User-agent: Second
Crawl-delay: 0
Content-Usage: train-ai=y
Content-Usage: /closed train-ai=n

User-agent: Quiet
Disallow: /x
"""


@pytest.mark.parametrize(
    ("token", "path", "status"),
    [
        ("darkroom", "/test", sample.OPT_OUT_ROBOTS_USAGE),
        ("darkroom", "/never/test", sample.OPT_OUT_ROBOTS_TXT),
        ("darkroom", "/ai-ok/test", sample.OK),
        ("darkroom", "/ai-ok/not/test", sample.OPT_OUT_ROBOTS_USAGE),
        ("darkroom", "/twice/test", sample.OPT_OUT_ROBOTS_USAGE),
        ("darkroom", "/other/a.png", sample.OK),
        ("darkroom", "/other/a.jpg", sample.OPT_OUT_ROBOTS_USAGE),
        ("ExampleBot", "/test", sample.OK),
        ("Second", "/closed/test", sample.OPT_OUT_ROBOTS_USAGE),
        ("Quiet", "/test", sample.OK),
    ],
)
def test_content_usage_of_robots_txt(token, path, status):
    """The draft's own example (draft-ietf-aipref-attach, 3.4), and what it says of depth, ties and groups."""
    answers = {"/robots.txt": Answer(body=USAGE.encode()), path: Answer()}
    found, asked = statuses([path], answers, user_agent_token=token)
    assert found == {path: status}
    assert (path in asked) == (status == sample.OK)
    without = tuple(name for name in SETTINGS.consent if name != "robots_usage")
    found, _ = statuses([path], answers, user_agent_token=token, consent=without)
    assert found == {path: sample.OPT_OUT_ROBOTS_TXT if status == sample.OPT_OUT_ROBOTS_TXT else sample.OK}


def test_content_usage_for_other_robots_is_not_ours():
    assert usage_rules("User-agent: *\nDisallow: /x\n") is None
    rules = Answer(body=b"User-agent: otherbot\nContent-Usage: train-ai=n\n")
    with origin({"/robots.txt": rules, "/a": Answer()}) as server:
        _, outcome = Fetcher(SETTINGS, Limits(4).exchange).fetch(f"{server.url}/a")
    assert (outcome.status, outcome.signals["robots_usage"]) == (sample.OK, "not refused")


def test_tdmrep_file():
    rules = json.dumps([{"location": "/art/*", "tdm-reservation": 1}]).encode()
    answers = {"/.well-known/tdmrep.json": Answer(body=rules), "/art/a": Answer(), "/b": Answer()}
    found, asked = statuses(["/art/a", "/b"], answers)
    assert found == {"/art/a": sample.OPT_OUT_TDMREP, "/b": sample.OK}
    assert asked == ["/robots.txt", "/.well-known/tdmrep.json", "/b"]
    for body in (b"<html>not found</html>", b"[" * 100_000):
        page = {"/.well-known/tdmrep.json": Answer(body=body), "/art/a": Answer()}
        assert statuses(["/art/a"], page)[0] == {"/art/a": sample.OK}


def test_headers_and_assertions_exclude_and_are_kept():
    answers = {
        "/robots-tag": Answer(headers={"X-Robots-Tag": "noai"}),
        "/tdm": Answer(headers={"tdm-reservation": "1"}),
        "/usage": Answer(headers={"Content-Usage": "train-ai=n"}),
        "/c2pa": Answer(body=in_jpeg(store(NO_TRAINING))),
        "/fine": Answer(headers={"X-Robots-Tag": "otherbot: noai", "tdm-reservation": "0"}),
    }
    with origin(answers) as server:
        found = {path: Fetcher(SETTINGS, Limits(4).exchange).fetch(server.url + path) for path in answers}
        assert server.agents == {"Mozilla/5.0 (compatible; darkroom/1.0) (+a@b.example)"}
    assert {path: outcome.status for path, (_, outcome) in found.items()} == {
        "/robots-tag": sample.OPT_OUT_X_ROBOTS_TAG,
        "/tdm": sample.OPT_OUT_TDM_HEADER,
        "/usage": sample.OPT_OUT_CONTENT_USAGE,
        "/c2pa": sample.OPT_OUT_C2PA,
        "/fine": sample.OK,
    }
    assert [data for data, _ in found.values()] == [None, None, None, None, JPEG]
    assert found["/robots-tag"][1].signals["x_robots_tag"] == "noai"
    assert found["/c2pa"][1].signals["c2pa_training_mining"] == "ai_training=notAllowed, ai_inference=allowed"
    assert found["/fine"][1].signals == {
        "robots_txt": "none",
        "robots_usage": "none",
        "tdmrep": "none",
        "x_robots_tag": "otherbot: noai",
        "tdm_reservation": "0",
        "content_usage": None,
        "c2pa_training_mining": None,
    }
    assert set(statuses(list(answers), answers, consent=())[0].values()) == {sample.OK}


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("X-Robots-Tag", "noai", sample.OPT_OUT_X_ROBOTS_TAG),
        ("tdm-reservation", "1", sample.OPT_OUT_TDM_HEADER),
        ("Content-Usage", "train-ai=n", sample.OPT_OUT_CONTENT_USAGE),
    ],
)
def test_what_a_redirect_says_is_heeded(header, value, status):
    with origin({"/x": Answer()}) as server:
        server.answers["/a"] = Answer(status=302, headers={"Location": "/x", header: value}, body=b"")
        _, outcome = Fetcher(SETTINGS, Limits(4).exchange).fetch(f"{server.url}/a")
        assert (outcome.status, server.asked("/x")) == (status, 0)
        data, outcome = Fetcher(replace(SETTINGS, consent=()), Limits(4).exchange).fetch(f"{server.url}/a")
    assert (data, outcome.status, outcome.http_status) == (JPEG, sample.OK, 200)
    assert value in outcome.signals.values()


def test_the_body_of_an_opted_out_picture_is_not_read():
    dripping = Answer(act="drip", headers={"X-Robots-Tag": "noai"}, body=bytes(1_000_000))
    with origin({"/a": dripping}) as server:
        _, outcome = Fetcher(SETTINGS, Limits(4).exchange).fetch(f"{server.url}/a")
    assert outcome.status == sample.OPT_OUT_X_ROBOTS_TAG
    assert outcome.seconds < 1
