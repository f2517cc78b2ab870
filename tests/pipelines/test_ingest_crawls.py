"""Crawls through img2dataset on Ray: rounds, interruptions, the alarm, licences, the report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml

from curate import sample
from curate.bad_input import BadInput
from curate.config import RETRIES, CurationConfig, DumpSource, IngestConfig, RayConfig, WebSource
from curate.config_file import as_dict
from curate.takedown import asked_for
from pipelines.crawl_report import crawl_report, lines, round_order
from pipelines.ingest import ingest
from pipelines.ingest_crawls import CrawlStopped
from pipelines.runner import Runner
from pipelines.takedown import take_down
from tests.conftest import encoded, picture
from tests.curate.crawl_origin import Answer, Origin, origin

AT_ONCE = tuple(replace(policy, runs=3, wait_s=0, next_run_after_s=0) for policy in RETRIES)
SETTINGS = IngestConfig(
    allowed_networks=("127.0.0.1/32",),
    rows_per_shard=20,
    download_threads=8,
    timeout_s=1,
    deadline_s=3,
    retries=0,
    retry=AT_ONCE,
    host_failures=1000,
    alarm_share=None,
)
PROJECT = Path(__file__).resolve().parents[2]
FILES = ("/robots.txt", "/.well-known/tdmrep.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Callable[[CurationConfig], None]]:
    """Ingest under a configuration; one Ray session serves all tests."""
    with Runner(CurationConfig(root=str(tmp_path_factory.mktemp("ray")), ray=RayConfig(num_cpus=2))) as first:
        ray = first.ray()

        def call(config: CurationConfig) -> None:
            runner = Runner(config)
            runner._ray = ray
            ingest(runner)

        yield call


def good(number: int) -> Answer:
    return Answer(body=encoded(picture(number, 32, 24), quality=90))


def configured(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> CurationConfig:
    pd.DataFrame(rows).to_parquet(folder / "urls.parquet")
    source = WebSource(
        name="web",
        url_list=str(folder / "urls.parquet"),
        license_column="license" if "license" in rows[0] else None,
        sha256_column="sha256" if "sha256" in rows[0] else None,
        extra_columns=("score",) if "score" in rows[0] else (),
    )
    return CurationConfig(root=str(folder / "out"), web=(source,), ingest=replace(SETTINGS, **changes))


def listed(server: Origin, paths: list[str]) -> list[dict[str, Any]]:
    return [{"url": server.url + path, "caption": f"a picture at {path}"} for path in paths]


def samples(folder: Path) -> pd.DataFrame:
    """Return the samples by path."""
    rows = pd.read_parquet(folder / "out" / "tables" / "samples")
    return rows.set_index(rows["url"].str.replace(r"^http://[^/]+", "", regex=True))


def requested(server: Origin) -> list[str]:
    """Return the pictures that were asked for since the last call, in order."""
    paths = sorted(path for _, path in server.log if path not in FILES)
    server.log.clear()
    return paths


def files(folder: Path) -> dict[str, str]:
    """Return the hashes of raw shards and tables, without the log of requests, which has times."""
    paths = [*(folder / "out" / "raw").rglob("*.tar"), *(folder / "out" / "tables" / "samples").glob("*.parquet")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_root_that_img2dataset_takes_for_a_pattern_is_refused_before_anything_is_asked(tmp_path, run):
    with origin({"/0": good(0)}) as server:
        config = configured(tmp_path, listed(server, ["/0"]))
        with pytest.raises(BadInput, match=r"root = .*out \[1\]: img2dataset takes .* choose a folder without them"):
            run(replace(config, root=str(tmp_path / "out [1]")))
        assert requested(server) == []


def test_failed_rows_alone_are_asked_again(tmp_path, run):
    bad = {
        "/error": Answer(status=500, body=b""),
        "/late": Answer(status=503, body=b""),
        "/gone": Answer(status=404, body=b""),
        "/denied": Answer(status=403, body=b""),
        "/page": Answer(body=b"<html></html>"),
        "/opted-out": Answer(headers={"X-Robots-Tag": "noai"}),
        "/cut": Answer(act="cut"),
    }
    with origin({f"/good/{n}": good(n) for n in range(25)} | bad) as server:
        config = configured(tmp_path, listed(server, list(server.answers)))
        run(config)
        assert requested(server) == sorted(server.answers)
        before = files(tmp_path)
        assert samples(tmp_path)["status"].value_counts()[sample.OK] == 25

        server.answers["/error"] = good(100)
        run(config)
        assert requested(server) == ["/cut", "/error", "/late"]
        rows = samples(tmp_path)
        assert len(rows) == len(server.answers)
        assert rows.loc["/error", "status"] == sample.OK
        assert rows.loc["/late", "status"] == sample.HTTP_BUSY
        assert rows.loc["/late", "http_status"] == 503
        assert rows.loc[["/error", "/late", "/cut", "/gone", "/good/0"], "runs"].tolist() == [2, 2, 2, 1, 1]
        kept = {path: value for path, value in files(tmp_path).items() if path in before and path.endswith(".tar")}
        assert kept == {path: value for path, value in before.items() if path.endswith(".tar")}

        server.answers["/late"] = good(101)
        run(config)
        assert requested(server) == ["/cut", "/late"]
        run(config)
        assert requested(server) == []
        assert samples(tmp_path).loc["/cut", "runs"] == 3
        for path, row in samples(tmp_path).query("status == 'ok'").iterrows():
            data = (tmp_path / "out" / row["shard"]).read_bytes()[int(row["offset"]) :][: int(row["num_bytes"])]
            assert data == server.answers[path].body


def test_rows_that_are_not_due_start_nothing(tmp_path, run, monkeypatch):
    later = tuple(replace(policy, next_run_after_s=3600) for policy in AT_ONCE)
    with origin({"/good": good(1), "/error": Answer(status=500, body=b"")}) as server:
        config = configured(tmp_path, listed(server, ["/good", "/error"]), retry=later)
        run(config)
        assert requested(server) == ["/error", "/good"]
        monkeypatch.setattr(Runner, "ray", lambda _: pytest.fail("Ray was asked for"))
        run(config)
        assert requested(server) == []


class Cut(Exception):
    """The run ends here."""


def cut_after_download(run: Callable[[CurationConfig], None], config: CurationConfig, monkeypatch: Any) -> None:
    """Let a run end when all is downloaded, and nothing kept of it yet."""
    with monkeypatch.context() as patch:

        def cut(runner: Runner, step: Any, wanted: Any, run: Any = Runner.run) -> Any:
            if step.table == "fetches":
                raise Cut
            return run(runner, step, wanted)

        patch.setattr(Runner, "run", cut)
        with pytest.raises(Cut):
            run(config)


def test_what_a_run_downloaded_before_its_list_changed_is_not_taken(tmp_path, run, monkeypatch):
    with origin({f"/{n}": good(n) for n in range(5)}) as server:
        cut_after_download(run, configured(tmp_path, listed(server, ["/0", "/1", "/2"])), monkeypatch)
        requested(server)
        run(configured(tmp_path, listed(server, ["/2", "/3", "/4"])))
        assert requested(server) == ["/2", "/3", "/4"]
    assert samples(tmp_path)["status"].to_dict() == dict.fromkeys(["/2", "/3", "/4"], sample.OK)
    check_bytes(tmp_path)
    assert not (tmp_path / "out" / "raw" / "download" / "web").exists()


def test_what_a_run_downloaded_before_more_signals_were_heeded_is_not_taken(tmp_path, run, monkeypatch):
    with origin({"/out": replace(good(0), headers={"X-Robots-Tag": "noai"})}) as server:
        rows = listed(server, ["/out"])
        cut_after_download(run, configured(tmp_path, rows, consent=()), monkeypatch)
        run(configured(tmp_path, rows))
    assert samples(tmp_path)["status"].to_dict() == {"/out": sample.OPT_OUT_X_ROBOTS_TAG}


def test_a_takedown_between_a_download_and_the_run_that_keeps_it(tmp_path, run, monkeypatch):
    with origin({f"/{n}": Answer(status=500, body=b"") for n in range(3)}) as server:
        config = configured(tmp_path, listed(server, ["/0", "/1", "/2"]))
        run(config)
        server.answers.update({f"/{n}": good(n) for n in range(2)})
        cut_after_download(run, config, monkeypatch)
        list(take_down(config, asked_for(urls=[f"{server.url}/{n}" for n in (0, 2)]), with_duplicates=False))
        run(config)
    assert samples(tmp_path)["status"].to_dict() == {"/1": sample.OK}
    check_bytes(tmp_path)


def test_a_takedown_between_fetches_and_samples(tmp_path, run, monkeypatch):
    whole = Runner.run

    def cut(self, step, wanted):
        if step.table == "samples":
            raise KeyboardInterrupt
        return whole(self, step, wanted)

    with origin({f"/{n}": good(n) for n in range(3)}) as server:
        config = configured(tmp_path, listed(server, ["/0", "/1", "/2"]))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Runner, "run", cut)
            run(config)
        assert not (tmp_path / "out/tables/samples").exists()
        gone = hashlib.sha256(good(2).body).hexdigest()
        list(take_down(config, asked_for(urls=[f"{server.url}/0"], sha256=[gone]), with_duplicates=False))
        run(config)
    assert samples(tmp_path)["status"].to_dict() == {"/1": sample.OK}
    check_bytes(tmp_path)
    (tar,) = (tmp_path / "out/raw").rglob("*.tar")
    assert not any(good(number).body in tar.read_bytes() for number in (0, 2))


def test_a_run_interrupted_and_resumed_gives_the_same_tables(tmp_path, run, monkeypatch):
    with origin({f"/good/{n}": good(n) for n in range(50)}) as server:
        rows = listed(server, [*server.answers, "/gone"])
        for name in ("whole", "cut"):
            (tmp_path / name).mkdir()
        run(configured(tmp_path / "whole", rows))
        config = configured(tmp_path / "cut", rows)
        cut_after_download(run, config, monkeypatch)
        downloads = tmp_path / "cut" / "out" / "raw" / "download" / "web"
        shards = sorted(downloads.glob("*/*.tar"))
        assert len(shards) == 3
        shards[0].write_bytes(shards[0].read_bytes()[:9000])  # killed while it wrote this one
        chunk = pd.read_parquet(shards[0].with_suffix(".parquet"))["chunk"][0]
        lost = pd.read_parquet(next(downloads.glob(f"*-lists/{chunk}.parquet")))["url"].str.replace(server.url, "")
        requested(server)
        run(config)
        assert requested(server) == sorted(lost)
        assert files(tmp_path / "cut") == files(tmp_path / "whole")
        assert not downloads.exists()


def test_a_run_that_is_killed_and_run_again_gives_the_same_tables(tmp_path, run):
    """SIGKILL to the run and to every process of Ray in the middle of the download, after the first whole shards."""
    with origin({f"/good/{n}": replace(good(n), act="pause") for n in range(120)}) as server:
        rows = listed(server, [*server.answers, "/gone"])
        for name in ("whole", "killed"):
            (tmp_path / name).mkdir()
        patient = {"timeout_s": 20, "deadline_s": 60}
        run(configured(tmp_path / "whole", rows, **patient))
        config = configured(tmp_path / "killed", rows, requests_per_host=4, **patient)
        (tmp_path / "killed.yaml").write_text(yaml.safe_dump(as_dict(config)))
        server.log.clear()
        done = killed_when(
            ["pipelines/ingest.py", "--config", str(tmp_path / "killed.yaml")],
            lambda: len(finished(tmp_path / "killed")) >= 2 and len(requested_so_far(server)) > 50,
        )
        assert done == -signal.SIGKILL
        asked = set(requested_so_far(server))
        assert 50 < len(asked) < 121
        kept = {
            url.replace(server.url, "")
            for stats in finished(tmp_path / "killed")
            for url in urls_of(tmp_path / "killed", stats)
        }
        assert len(kept) >= 2 * 16
        assert not (tmp_path / "killed" / "out" / "tables" / "samples").exists()
        server.log.clear()
        run(config)
        assert set(requested(server)) == {"/gone", *server.answers} - kept
        assert files(tmp_path / "killed") == files(tmp_path / "whole")
        assert not (tmp_path / "killed" / "out" / "raw" / "download" / "web").exists()


def killed_when(words: list[str], due: Callable[[], bool]) -> int:
    """Start a script of the project, kill it and all that it started when it is due; return its exit status."""
    with (Path(tempfile.gettempdir()) / "darkroom-killed.log").open("w") as log:
        process = subprocess.Popen([sys.executable, *words], cwd=PROJECT, stdout=log, stderr=log)
        try:
            for _ in range(4000):
                if due() or process.poll() is not None:
                    break
                time.sleep(0.02)
        finally:
            whole = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for one in whole:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
    return process.wait(20)


def finished(folder: Path) -> list[Path]:
    """Return the statistics of the shards of which everything is there."""
    found = (folder / "out" / "raw" / "download" / "web").glob("*/*_outcomes.parquet")
    return [path for path in found if not path.name.startswith(".") and path.stat().st_size > 0]


def urls_of(folder: Path, outcomes: Path) -> list[str]:
    uids = pd.read_parquet(outcomes)["uid"]
    lists = pd.concat(pd.read_parquet(path) for path in (folder / "out" / "raw" / "urls").glob("*.parquet"))
    return lists[lists["uid"].isin(uids)]["url"].tolist()


def requested_so_far(server: Origin) -> list[str]:
    return [path for _, path in server.log if path not in FILES]


def test_what_was_lost_or_cut_off_alone_is_asked_again(tmp_path, run):
    with origin({f"/good/{n}": good(n) for n in range(30)}) as server:
        fine = dict(server.answers)
        config = configured(tmp_path, listed(server, list(fine)), rows_per_shard=15, timeout_s=10, deadline_s=30)
        server.answers.update({f"/good/{n}": Answer(status=500, body=b"") for n in range(1, 30, 4)})
        run(config)
        server.answers.update(fine)
        run(config)
        first = samples(tmp_path).query("shard.str.startswith('raw/web-00000')")["shard"]
        failed_once = sorted(first[first.str.contains("-r01")].index)
        assert 0 < len(failed_once) < len(first) == 15
        losses = [
            ("tables/samples/web-00000.parquet", 700, []),
            ("raw/web-00000-r01.tar", 600, failed_once),
            ("raw/web-00000-r01.tar", 0, failed_once),
            ("tables/fetches/web-00000-r00.parquet", 900, sorted(first.index)),
            ("raw/web-00000-r00.tar", 5000, sorted(first.index)),
            ("raw/web-00000-r00.tar", 0, sorted(first.index)),
        ]
        for lost, left, asked in losses:
            path = tmp_path / "out" / lost
            data = path.read_bytes()
            path.unlink()
            if left:
                assert left < len(data)
                path.write_bytes(data[:left])
            requested(server)
            run(config)
            assert requested(server) == asked, lost
            check_bytes(tmp_path)
        run(config)
        assert requested(server) == []


def check_bytes(folder: Path) -> None:
    """Check that every picture is in its shard."""
    for _, row in samples(folder).iterrows():
        assert row["status"] == sample.OK
        found = (folder / "out" / row["shard"]).read_bytes()[int(row["offset"]) :][: int(row["num_bytes"])]
        assert hashlib.sha256(found).hexdigest() == row["sha256"]


def test_a_source_that_becomes_an_evaluation_set_is_not_crawled_anew(tmp_path, run):
    with origin({f"/{number}": good(number) for number in range(3)}) as server:
        config = configured(tmp_path, listed(server, ["/0", "/1", "/2"]))
        run(config)
        before = files(tmp_path)
        assert requested(server) == ["/0", "/1", "/2"]
        run(replace(config, web=(replace(config.web[0], evaluation=True),)))
        assert requested(server) == []
    assert files(tmp_path) == before


def test_a_list_of_the_same_rows_asks_for_nothing(tmp_path, run):
    with origin({f"/{number}": good(number) for number in range(4)}) as server:
        rows = listed(server, ["/0", "/1", "/2"])
        run(configured(tmp_path, rows))
        before = files(tmp_path)
        assert requested(server) == ["/0", "/1", "/2"]
        config = configured(tmp_path, [*reversed(rows), rows[0]])  # in another order, with one of them twice
        run(config)
        assert requested(server) == [] and files(tmp_path) == before
        list(take_down(config, asked_for(urls=[f"{server.url}/0"]), with_duplicates=False))
        run(configured(tmp_path, rows))
        assert requested(server) == []
        assert sorted(samples(tmp_path).index) == ["/1", "/2"]
        run(configured(tmp_path, [*rows, *listed(server, ["/3"])]))
        assert "/3" in requested(server)
        assert sorted(samples(tmp_path).index) == ["/1", "/2", "/3"]
    check_bytes(tmp_path)


def test_what_the_last_crawl_brought_goes_with_it(tmp_path, run):
    dump = tmp_path / "dump"
    dump.mkdir()
    (dump / "0.jpg").write_bytes(good(9).body)
    with origin({"/0": good(0)}) as server:
        config = configured(tmp_path, listed(server, ["/0"]))
        run(config)
    run(replace(config, web=(), dumps=(DumpSource(name="dump", folder=str(dump)),)))
    assert samples(tmp_path)["source"].to_list() == ["dump"]
    raw = [path for path in (tmp_path / "out" / "raw").rglob("*") if path.is_file()]
    assert {path.name.split("-")[0].split(".")[0] for path in raw} == {"dump"}


def test_the_limit_of_a_host_holds_for_all_workers_of_a_run(tmp_path, run):
    with origin({f"/good/{n}": replace(good(n), act="pause") for n in range(40)}) as server:
        run(configured(tmp_path, listed(server, list(server.answers)), rows_per_shard=10, requests_per_host=3))
        fetches = pd.read_parquet(tmp_path / "out" / "tables" / "fetches")
        assert set(fetches["status"]) == {sample.OK}
        assert len(list((tmp_path / "out" / "raw").glob("*-r00.tar"))) == 4
        assert server.asked("/robots.txt") == 2, "one for each worker process"
        assert server.most_at_once == 3


def test_the_alarm_stops_a_run_that_goes_wrong_and_the_next_run_goes_on(tmp_path, run):
    with origin({f"/good/{n}": good(n) for n in range(120)}) as server:
        rows = listed(server, [f"/good/{n}" for n in range(120)])
        config = configured(tmp_path, rows, rows_per_shard=60, download_threads=2, alarm_share=0.5, alarm_requests=10)
        fine = dict(server.answers)
        failing = [path for number, path in enumerate(fine) if number % 4]
        server.answers.update({path: Answer(status=500, body=b"") for path in failing})
        with pytest.raises(CrawlStopped) as caught:
            run(config)
        message = str(caught.value)
        assert "crawl web: " in message and "of the last 10 requests failed (http_server_error" in message
        assert f"most often 127.0.0.1:{server.port} " in message
        assert "ingest.alarm_share = 0.5" in message
        asked = requested(server)
        assert len(asked) < 110
        assert not (tmp_path / "out" / "tables" / "samples").exists()

        server.answers.update(fine)
        run(replace(config, ingest=replace(config.ingest, retry=tuple(replace(p, runs=1) for p in AT_ONCE))))
        came_in = {path for path in asked if path not in failing}
        assert came_in
        assert requested(server) == sorted(set(fine) - came_in)
        assert set(samples(tmp_path)["status"]) == {sample.OK}


def test_licences_hashes_and_columns_of_the_list(tmp_path, run):
    answers = {f"/{name}": good(n) for n, name in enumerate(("a", "b", "c", "d"))}
    with origin(answers) as server:
        rows = [
            {"license": license_, "sha256": hashlib.sha256(answers[path].body).hexdigest(), "score": 0.5}
            | {"url": server.url + path, "caption": "a picture"}
            for path, license_ in zip(answers, ("CC0-1.0", "cc-by-4.0", "arr", None), strict=True)
        ]
        rows[1]["sha256"] = "0" * 64
        rows.append({"url": None, "caption": "no address", "license": "CC0-1.0", "sha256": None, "score": 0.25})
        config = configured(tmp_path, rows, allowed_licenses=("cc0-1.0", "CC-BY-4.0"))
        run(config)
        assert requested(server) == ["/a", "/b"]
        found = samples(tmp_path)
        assert found["status"].to_dict() == {
            "/a": sample.OK,
            "/b": sample.HASH_MISMATCH,
            "/c": sample.LICENSE_REFUSED,
            "/d": sample.LICENSE_REFUSED,
            None: sample.MISSING_URL,
        }
        assert found["license"].to_dict()["/a"] == "CC0-1.0"
        assert {json.loads(extra)["score"] for extra in found["extra"]} == {0.5, 0.25}
        run(replace(config, ingest=replace(config.ingest, allowed_licenses=None)))
        assert requested(server) == ["/c", "/d"]
        found = samples(tmp_path)
        assert found.loc[["/a", "/c", "/d"], "status"].tolist() == [sample.OK] * 3
        run(replace(config, ingest=replace(config.ingest, allowed_licenses=("arr",))))
        assert requested(server) == []
        found = samples(tmp_path)
        assert found.loc[["/a", "/c"], "status"].tolist() == [sample.LICENSE_REFUSED, sample.OK]
        assert found.loc["/a", "shard"] is None


def test_the_report_counts_by_class_and_host(tmp_path, run):
    answers = {f"/good/{n}": good(n) for n in range(4)} | {"/error": Answer(status=500, body=b"")}
    with origin(answers) as server:
        rows = listed(server, [*answers, "/gone"]) + [{"url": "http://no-such-host.invalid/x", "caption": "x"}]
        config = configured(tmp_path, rows, retry=(AT_ONCE[6],))
        assert AT_ONCE[6].status == sample.HTTP_SERVER_ERROR
        run(config)
        run(config)
        report = crawl_report(Runner(config).root)
        host = f"127.0.0.1:{server.port}"
    assert report["statuses"] == {"ok": 4, "http_server_error": 2, "dns": 1, "http_gone": 1}
    assert report["hosts"] == {
        host: {"ok": 4, "http_server_error": 2, "http_gone": 1},
        "no-such-host.invalid": {"dns": 1},
    }
    assert {name: (said["rows"], said["requests"]) for name, said in report["rounds"].items()} == {
        "r00": (7, 7),
        "r01": (1, 1),
    }
    assert report["rounds"]["r00"]["ok_share"] == round(4 / 7, 4)
    told = lines(report)
    assert told[0] == "crawl: 8 rows, 8 requests (ok 4, http_server_error 2, dns 1, http_gone 1)"
    assert told[2] == f"crawl: {host}: ok 4, http_server_error 2, http_gone 1"


def test_the_hundredth_round_comes_after_those_before_it():
    names = ["web-00000-r99", "web-00000-r100", "web-00000-r02"]
    assert [name for name, _ in sorted(dict.fromkeys(names).items(), key=round_order)] == [
        "web-00000-r02",
        "web-00000-r99",
        "web-00000-r100",
    ]
