"""Dedup on a Ray cluster of two nodes, a worker killed or files of its index lost, equals dedup in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pipelines.store import Root
from tests.pipelines.dedup_corpus import PLAIN, random_rows, write_tables
from tests.pipelines.test_dedup import SEMANTIC, run

PROJECT = Path(__file__).resolve().parents[2]

ON_TWO_NODES = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, os.environ["PROJECT"])
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
from curate.config import CurationConfig, DedupConfig, DumpSource, RayConfig
from pipelines.dedup import dedup
from pipelines.runner import Runner
settings = json.loads(sys.argv[2])
config = CurationConfig(
    root=sys.argv[1],
    dumps=(DumpSource(name="benchmark", folder="unused", evaluation=True),),
    dedup=DedupConfig(**settings),
    ray=RayConfig(address=cluster.address),
)
with Runner(config) as runner:
    ray = runner.ray()
    nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    assert len(nodes) == 2, nodes
    report = dedup(runner)[0]
    entry = {path: path.read_bytes() for path in Path(settings["index"]).glob("*/*.parquet")}
    for path in entry:
        path.unlink()
    assert dedup(runner)[0].made == 0
    assert len(entry) == 2 and {path: path.read_bytes() for path in entry} == entry
print(json.dumps({"made": report.made, "counts": report.counts}))
cluster.shutdown()
"""

KILLED_ONCE = """
import os, signal, sys
if any(part.endswith("default_worker.py") for part in sys.orig_argv):
    sys.path.insert(0, os.environ["PROJECT"])
    from pipelines import dedup_blocks, dedup_ranking
    def killed_once(function):
        def killing(*arguments):
            mark = os.path.join(os.environ["MARKS"], function.__name__)
            if not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)
        return killing
    dedup_blocks._met = killed_once(dedup_blocks._met)
    dedup_ranking.sift = killed_once(dedup_ranking.sift)
"""
"""The sitecustomize of the workers: the first task that sifts, and the first that meets, kills its own process."""


def test_two_nodes_and_killed_workers_give_the_same_rows(tmp_path):
    rows = random_rows(5, 200)
    parts = [rows[:90], rows[90:]]
    settings = SEMANTIC | {
        "rows_per_block": 70,
        "rows_per_group": 100,
        "max_pairs": 40,
        "index": str(tmp_path / "index"),
    }
    expected = run(write_tables(tmp_path / "alone", parts, **SEMANTIC))
    config = write_tables(tmp_path / "spread", parts, **settings)
    script = tmp_path / "two_nodes.py"
    script.write_text(ON_TWO_NODES)
    for name in ("marks", "site"):
        (tmp_path / name).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLED_ONCE)
    said = json.dumps({"radius_bits": PLAIN.radius_bits, "error_image_captions": PLAIN.error_image_captions} | settings)
    done = subprocess.run(
        [sys.executable, script, config.root, said],
        env=os.environ
        | {
            "PROJECT": str(PROJECT),
            "MARKS": str(tmp_path / "marks"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(tmp_path / "site"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in (tmp_path / "marks").iterdir()) == ["_met", "sift"]
    root = Root(config.root)
    tables = [root.read_table(f"tables/duplicates/crawl-{number:05d}.parquet") for number in (0, 1)]
    assert {one["uid"]: one for table in tables for one in table.to_pylist()} == expected
    assert not root.exists("dedup_scratch")
