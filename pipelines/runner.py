"""Runs a step: makes the fragments that are missing, as Ray tasks, and publishes the table.

This is the only module that calls Ray. Ray starts when the first fragment must be made, so a
rerun that finds everything done takes no cluster at all.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from curate.bad_input import BadInput
from curate.command_line import heed_ctrl_c, heed_sigterm
from curate.commit import git_commit
from curate.config import CurationConfig
from curate.config_file import as_dict
from pipelines.progress import Progress
from pipelines.store import Receipt, Root, Written, commit, digest, find_receipt, parquet_bytes, publish, table_file
from pipelines.table_lock import table_lock

DEATHS = 3
"""So many processes of actors may die of a fragment, and the next one is the last."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a task makes: a table's rows, files beside it, and counts for run.json."""

    rows: pa.Table | None
    """The rows of the fragment's own parquet file; None where `files` has them all."""
    files: Mapping[str, bytes | Path | Written] = field(default_factory=dict)
    """By path below the root: contents, a finished local file that is moved away, or what is written already."""
    counts: dict[str, int] = field(default_factory=dict)
    num_rows: int = 0
    """Rows in `files`, where `rows` is None."""


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """One fragment of a table: what it is made from, and what the step's function is called with."""

    name: str
    made_from: Any
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step as data: the table it makes and the function that makes one fragment.

    `build(config)` is called once in each worker process and returns the function; what it builds
    (a model, a list) is reused for every fragment. `actors` > 0 keeps that many such processes; their
    function takes `careful`, whether a process died while it made the fragment.
    """

    table: str
    settings: Any
    build: Callable[[CurationConfig], Callable[..., Made]]
    spreads: bool = False
    """The function takes a Pool first and spreads its own tasks."""
    actors: int = 0
    device: Literal["auto", "gpu", "cpu"] = "cpu"
    """Where the actors work; auto is a GPU where the cluster has any."""
    gpus_per_actor: float = 1.0
    models: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a step did."""

    table: str
    rows: int
    made: int
    kept: int
    seconds: float
    counts: dict[str, int]


class WouldMake(Exception):
    """Ends a dry run at the first step that has work to do: what follows depends on what it makes."""

    def __init__(self, table: str, missing: int, wanted: int) -> None:
        super().__init__(table, missing, wanted)
        self.table, self.missing, self.wanted = table, missing, wanted

    def __str__(self) -> str:
        return (
            f"{self.table:<14} would make {self.missing:,} of {self.wanted:,} fragments;"
            " what follows it can be told once they are there"
        )


def shaping(settings: Any, *speed: str) -> dict[str, Any]:
    """Return the settings that shape a result, without those that only say how fast it is made."""
    return {name: value for name, value in as_dict(settings).items() if name not in speed}


class Runner:
    """One Ray session for a whole run, started when it is first needed."""

    def __init__(self, config: CurationConfig, dry_run: bool = False) -> None:
        self.config = config
        self.root = Root(config.root)
        self.dry_run = dry_run
        self._ray: Any = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ray is not None:
            self._ray.shutdown()

    def run(self, step: Step, wanted: Sequence[Fragment]) -> Report:
        """Make the fragments that are missing, then publish the table; raises WouldMake instead in a dry run."""
        heed_ctrl_c()
        started = time.monotonic()
        settings = as_dict(step.settings)
        keys = {fragment.name: digest([fragment.made_from, settings]) for fragment in wanted}
        receipts = self._receipts(step, wanted, keys)
        missing = [fragment for fragment in wanted if receipts[fragment.name] is None]
        if self.dry_run and missing:
            raise WouldMake(step.table, len(missing), len(wanted))
        alone = table_lock(self.root, step.table) if missing else nullcontext()
        with alone, Progress(step.table, len(wanted), len(wanted) - len(missing)) as progress:
            for receipt in self._make(step, missing, keys):
                receipts[receipt.fragment] = receipt
                progress.advance(receipt.rows)
                heed_ctrl_c()
        done = [found for fragment in wanted if (found := receipts[fragment.name]) is not None]
        report = _report(step.table, done, len(missing), time.monotonic() - started)
        if not self.dry_run and (missing or not self._is_published(step.table, done)):
            publish(self.root, step.table, done, self._provenance(step, settings, report))
        return report

    def missing(self, step: Step, wanted: Sequence[Fragment]) -> list[Fragment]:
        """Return the fragments that a run of the step would make."""
        settings = as_dict(step.settings)
        keys = {fragment.name: digest([fragment.made_from, settings]) for fragment in wanted}
        receipts = self._receipts(step, wanted, keys)
        return [fragment for fragment in wanted if receipts[fragment.name] is None]

    def _receipts(self, step: Step, wanted: Sequence[Fragment], keys: dict[str, str]) -> dict[str, Receipt | None]:
        return {f.name: find_receipt(self.root, step.table, f.name, keys[f.name]) for f in wanted}

    def ray(self) -> Any:
        """Return the ray module with a session running."""
        if self._ray is None:
            self._ray = _start_ray(self.config)
        return self._ray

    def pool(self) -> Pool:
        """Return what spreads tasks from here, as a step that `spreads` does from its own."""
        self.ray()
        return Pool(self.config.ray.max_tasks)

    @contextmanager
    def shared(self, kind: Callable[..., Any], method: str, *arguments: Any) -> Iterator[Shared]:
        """Keep one object, made by kind(*arguments), of which every process of the run can call a method."""
        ray = self.ray()
        actor = ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3)(_Kept).remote(kind, method, arguments)
        try:
            yield Shared(actor)
        finally:
            ray.kill(actor)

    def _make(self, step: Step, missing: Sequence[Fragment], keys: dict[str, str]) -> Iterator[Receipt]:
        if not missing:
            return
        ray = self.ray()
        calls = ((f, keys[f.name]) for f in missing)
        if step.actors:
            yield from _through_actors(ray, step, self.config, calls, min(step.actors, len(missing)))
        else:
            yield from _through_tasks(ray, step, self.config, calls)

    def _is_published(self, table: str, done: list[Receipt]) -> bool:
        found = self.root.read_json(f"tables/{table}/_run.json")
        return found is not None and {n: s["receipt"] for n, s in found["fragments"].items()} == {
            receipt.fragment: receipt.digest for receipt in done
        }

    def _provenance(self, step: Step, settings: Any, report: Report) -> dict[str, Any]:
        return {
            "table": step.table,
            "settings": settings,
            "models": list(step.models),
            "counts": report.counts,
            "fragments_made": report.made,
            "seconds": round(report.seconds, 3),
            "versions": versions(),
            "git_commit": git_commit(),
        }


@dataclass(frozen=True)
class Shared:
    """Calls an object that lives in a process of its own; raises ConnectionError where that is gone."""

    actor: Any

    def __call__(self, *arguments: Any) -> Any:
        import ray

        try:
            return ray.get(self.actor.call.remote(*arguments))
        except ray.exceptions.RayActorError as error:
            raise ConnectionError("the process that keeps it has ended") from error


class _Kept:
    def __init__(self, kind: Callable[..., Any], method: str, arguments: tuple) -> None:
        self._method = getattr(kind(*arguments), method)

    def call(self, *arguments: Any) -> Any:
        return self._method(*arguments)


class Pool:
    """Spreads tasks over the cluster, from inside the task that makes one fragment or from the driver."""

    def __init__(self, max_tasks: int | None) -> None:
        import ray

        self._ray, self._max_tasks = ray, max_tasks
        nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        self.node_cpus = max(1, int(min(filter(None, nodes), default=1)))
        self.cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def share(self, value: Any) -> Any:
        """Return what stands for a value in the calls of `map`, so that it is sent once."""
        return self._ray.put(value)

    def map(
        self, function: Callable[..., Any], calls: Sequence[tuple], threads: int = 1, gpu: bool = False
    ) -> Iterator[Any]:
        """Yield function(*call) for each call in order, on a GPU each where `gpu` and the cluster has any.

        A task whose process dies is run again.
        """
        gpus = 1 if gpu and self._ray.cluster_resources().get("GPU", 0) else 0
        remote = self._ray.remote(max_retries=3, num_cpus=threads, num_gpus=gpus)(function)
        limit = self._max_tasks or 2 * max(1, self.cpus // threads)
        waiting = [remote.remote(*call) for call in calls[:limit]]
        for at in range(len(calls)):
            value = self._ray.get(waiting.pop(0))
            if at + limit < len(calls):
                waiting.append(remote.remote(*calls[at + limit]))
            yield value


def make_fragment(step: Step, config: CurationConfig, function: Callable[..., Made], call: tuple) -> Receipt:
    """Make one fragment and commit it. Runs in a worker."""
    fragment, key = call
    pool = (Pool(config.ray.max_tasks),) if step.spreads else ()
    made = function(*pool, *fragment.arguments)
    files, num_rows = dict(made.files), made.num_rows
    if made.rows is not None:
        files[table_file(step.table, fragment.name)] = parquet_bytes(made.rows)
        num_rows = len(made.rows)
    receipt = commit(Root(config.root), step.table, fragment.name, key, files, num_rows, made.counts)
    for content in made.files.values():
        if isinstance(content, Path):
            content.unlink()
    return receipt


_BUILT: dict[str, Callable[..., Made]] = {}


def _task(step: Step, config: CurationConfig, call: tuple) -> Receipt:
    """Build the step's function once for each worker process, then make the fragment."""
    identity = digest([step.table, as_dict(config)])
    if identity not in _BUILT:
        _BUILT[identity] = step.build(config)
    return make_fragment(step, config, _BUILT[identity], call)


class _Actor:
    def __init__(self, step: Step, config: CurationConfig) -> None:
        self.step, self.config, self.function = step, config, step.build(config)

    def make(self, call: tuple, careful: bool) -> Receipt:
        return make_fragment(self.step, self.config, partial(self.function, careful=careful), call)


def _through_tasks(ray: Any, step: Step, config: CurationConfig, calls: Iterator[tuple]) -> Iterator[Receipt]:
    """Keep a bounded number of tasks in flight; a task whose process dies is run again by Ray."""
    limit = config.ray.max_tasks or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    remote = ray.remote(max_retries=3)(_task)
    flying: list[Any] = []
    for call in calls:
        flying.append(remote.remote(step, config, call))
        if len(flying) >= limit:
            done, flying = ray.wait(flying)
            yield from ray.get(done)
    while flying:
        done, flying = ray.wait(flying)
        yield from ray.get(done)


def _through_actors(
    ray: Any, step: Step, config: CurationConfig, calls: Iterator[tuple], count: int
) -> Iterator[Receipt]:
    """Stream the fragments through processes that keep their model.

    Where one dies, another makes its fragment, with care, and DEATHS times at most.
    """
    gpus = gpus_of_an_actor(step, ray.cluster_resources().get("GPU", 0), count)
    kind = ray.remote(num_cpus=1, num_gpus=gpus)(_Actor)
    idle = [kind.remote(step, config) for _ in range(count)]
    waiting = deque((call, 0) for call in calls)
    flying: dict[Any, tuple[Any, tuple, int]] = {}
    while waiting or flying:
        while waiting and idle:
            actor, (call, deaths) = idle.pop(), waiting.popleft()
            flying[actor.make.remote(call, careful=deaths > 0)] = actor, call, deaths
        (done,), _ = ray.wait(list(flying))
        actor, call, deaths = flying.pop(done)
        try:
            receipt = ray.get(done)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            if deaths == DEATHS or getattr(error, "actor_init_failed", False):
                raise
            say(f"{step.table}: a process died while it made {call[0].name}: another makes it, with care")
            ray.kill(actor)
            actor = kind.remote(step, config)
            waiting.appendleft((call, deaths + 1))
        else:
            yield receipt
        idle.append(actor)


def gpus_of_an_actor(step: Step, cluster_gpus: float, count: int) -> float:
    """Return the GPUs that each of `count` actors takes; raises ValueError where the cluster has too few."""
    if step.device == "cpu" or (step.device == "auto" and cluster_gpus == 0):
        return 0
    wanted = count * step.gpus_per_actor
    if cluster_gpus < wanted:
        raise BadInput(
            f"{step.table}: actors = {count}: with gpus_per_actor = {step.gpus_per_actor:g} they take {wanted:g} GPUs "
            f"and the cluster has {cluster_gpus:g}: set fewer actors, a smaller gpus_per_actor, or device: cpu"
        )
    return step.gpus_per_actor


def _start_ray(config: CurationConfig) -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    project = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    python_path = os.pathsep.join(filter(None, (project, os.environ.get("PYTHONPATH"))))
    weights = {name: os.environ[name] for name in ("DARKROOM_WEIGHTS",) if name in os.environ}
    own = {} if address else {"num_cpus": config.ray.num_cpus, "include_dashboard": False}
    ray.init(
        address=address or "local",
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": python_path, "NO_ALBUMENTATIONS_UPDATE": "1"} | weights},
        **own,
    )
    heed_sigterm()
    return ray


def _report(table: str, done: list[Receipt], made: int, seconds: float) -> Report:
    counts: dict[str, int] = {}
    for receipt in done:
        for name, count in receipt.counts.items():
            counts[name] = counts.get(name, 0) + count
    rows = sum(receipt.rows for receipt in done)
    return Report(table=table, rows=rows, made=made, kept=len(done) - made, seconds=seconds, counts=counts)


def versions() -> dict[str, str]:
    """Return the versions of what computes, for run.json."""
    names = ("ray", "pyarrow", "torch", "open_clip_torch", "img2dataset", "imagehash", "pandas", "pillow", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def say(line: str) -> None:
    """Print a line of the run for people, apart from what scripts read."""
    print(line, file=sys.stderr, flush=True)
