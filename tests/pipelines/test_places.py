"""Roots that no run can use are refused before any work."""

from __future__ import annotations

import pytest

from curate.bad_input import BadInput
from curate.config import CurationConfig, DumpSource
from pipelines.places import OF_A_JOB, check_places, check_root

JOB = {OF_A_JOB: "{}"}


@pytest.mark.parametrize("root", ["runs/mine", "./runs", "file://runs/mine"])
def test_a_relative_root_in_a_ray_job_is_refused(root):
    with pytest.raises(BadInput, match="copy of the folder .* absolute path"):
        check_root(root, JOB)
    check_root(root, {})


@pytest.mark.parametrize("root", ["/data/run", "file:///data/run", "s3://bucket/run"])
def test_what_every_node_sees_is_taken(root):
    check_root(root, JOB)


def test_memory_is_refused():
    with pytest.raises(BadInput, match="root = memory://run: memory ends with each process"):
        check_root("memory://run", {})


def test_an_unknown_protocol_is_refused_with_its_field():
    with pytest.raises(BadInput, match="root = s4://bucket: Protocol not known: s4; use a path"):
        check_root("s4://bucket", {})
    dumps = (DumpSource(name="d", folder="htp://host/pictures"),)
    with pytest.raises(BadInput, match="dumps.d.folder = htp://host/pictures: Protocol not known"):
        check_places(CurationConfig(root="r", dumps=dumps))
