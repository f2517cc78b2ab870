import pytest

from curate.config import EmbedConfig
from pipelines.runner import Step, gpus_of_an_actor


def step(**settings: object) -> Step:
    return Step(table="features", settings={}, build=lambda _: None, actors=4, **settings)


@pytest.mark.parametrize(
    ("settings", "cluster_gpus", "expected"),
    [
        ({"device": "auto"}, 0, 0),
        ({"device": "auto"}, 4, 1),
        ({"device": "auto"}, 8, 1),
        ({"device": "auto", "gpus_per_actor": 0.5}, 2, 0.5),
        ({"device": "gpu"}, 4, 1),
        ({"device": "cpu"}, 8, 0),
        ({}, 8, 0),
    ],
)
def test_each_actor_takes_its_share(settings, cluster_gpus, expected):
    assert gpus_of_an_actor(step(**settings), cluster_gpus, 4) == expected


@pytest.mark.parametrize(("settings", "cluster_gpus"), [({"device": "auto"}, 2), ({"device": "gpu"}, 0)])
def test_too_few_gpus_are_an_error_and_never_the_cpu(settings, cluster_gpus):
    with pytest.raises(ValueError, match=rf"actors = 4.*take 4 GPUs and the cluster has {cluster_gpus}: set fewer"):
        gpus_of_an_actor(step(**settings), cluster_gpus, 4)


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_that_no_gpu_can_give_is_refused(share):
    with pytest.raises(ValueError, match="embed.gpus_per_actor"):
        EmbedConfig(gpus_per_actor=share)
