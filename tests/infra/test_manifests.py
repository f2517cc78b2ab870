"""The manifests parse, agree with the repository and with each other, and the Slurm script does what it says.

The Slurm script runs here for real, with small stand-ins for srun, scontrol, scancel, dcgmi and python.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
SBATCH = INFRA / "slurm" / "train.sbatch"


def locked_version(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert found is not None, package
    return found[1]


def manifests() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((INFRA / "ray" / "rayjob.yaml").read_text())
    return {document["kind"]: document for document in documents}


def pod_specs() -> dict[str, dict[str, Any]]:
    cluster = manifests()["RayJob"]["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]} | {"head": cluster["headGroupSpec"]}
    return {name: group["template"]["spec"] for name, group in groups.items()}


@pytest.mark.parametrize("path", sorted(INFRA.rglob("*.yaml")), ids=lambda path: path.name)
def test_yaml_parses(path: Path) -> None:
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", sorted(INFRA.rglob("*.s*h*")), ids=lambda path: path.name)
def test_scripts_parse(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_ray_job_runs_the_curation_with_a_token() -> None:
    job = manifests()["RayJob"]
    python, script, *flags = job["spec"]["entrypoint"].split()
    assert (job["apiVersion"], python, script) == ("ray.io/v1", "python", "pipelines/run.py")
    assert flags == ["--config", "/etc/darkroom/darkroom.yaml"]
    assert (ROOT / script).is_file()
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == locked_version("ray")


def test_ray_pods_differ_in_resources_only() -> None:
    for name, pod in pod_specs().items():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert container["resources"]["requests"] == container["resources"]["limits"], name
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        assert gpus == {"head": None, "cpu": None, "gpu": "1"}[name]


def test_what_the_ray_pods_mount_is_declared() -> None:
    objects = manifests()
    pod = pod_specs()["head"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [objects["PersistentVolumeClaim"]["metadata"]["name"]]
    assert pod["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    assert {document["metadata"]["namespace"] for document in objects.values()} == {"darkroom"}


def test_the_image_is_the_one_that_is_built() -> None:
    containerfile = (INFRA / "Containerfile").read_text()
    (tag,) = set(re.findall(r"darkroom:(\d+\.\d+\.\d+)", containerfile))
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert tag == version
    assert {pod["containers"][0]["image"] for pod in pod_specs().values()} == {f"darkroom:{tag}"}


def test_the_containerfile_copies_what_exists_and_is_not_root() -> None:
    containerfile = (INFRA / "Containerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(\S+) ", containerfile, re.MULTILINE)
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert re.findall(r"^USER (.+)$", containerfile, re.MULTILINE) == ["1000:1000"]
    assert "org.opencontainers.image.revision=${GIT_COMMIT}" in containerfile
    major_minor = ".".join(locked_version("cuda-toolkit").split(".")[:2])
    assert f"ARG CUDA_IMAGE=nvidia/cuda:{major_minor}." in containerfile


def test_the_slurm_batch_is_2048() -> None:
    text = SBATCH.read_text()
    option = {name: int(n) for name, n in re.findall(r"^#SBATCH --(nodes|\S+-per-node)=(\d+)$", text, re.MULTILINE)}
    stated = re.search(r"(\d+) GPUs x (\d+) micro-batch x (\d+) accumulation = (\d+)", text)
    assert stated is not None
    gpus, micro_batch, accumulation, batch = map(int, stated.groups())
    assert option["nodes"] * option["gpus-per-node"] == gpus == 256
    assert option["ntasks-per-node"] == option["gpus-per-node"]
    assert gpus * micro_batch * accumulation == batch == 2048


def test_the_slurm_script_starts_a_module_that_exists() -> None:
    (module,) = re.findall(r"python -m (\S+)", SBATCH.read_text())
    assert (ROOT / (module.replace(".", "/") + ".py")).is_file()


STAND_INS = {
    # runs the command once, as rank 3 of 256, without its own options
    "bin/srun": 'while [[ $1 == --* ]]; do shift; done; export SLURM_PROCID=3 SLURM_LOCALID=3; exec "$@"',
    "bin/scontrol": 'if [[ $1 == show ]]; then echo node7; echo node8; else echo "scontrol $*" >>calls; fi',
    "bin/scancel": 'echo "scancel $*" >>calls; kill -TERM "$(cat rank.pid)"',
    "bin/dcgmi": 'echo "dcgmi $*" >>calls; echo "GPU 5: fail"; exit "${DCGMI_CODE:-0}"',
    "venv/bin/python": """
        echo "python $* rank=$RANK local=$LOCAL_RANK world=$WORLD_SIZE master=$MASTER_ADDR:$MASTER_PORT" >>calls
        echo $$ >rank.pid
        trap 'echo saved >>calls; exit 0' TERM
        for _ in $(seq "${TRAIN_TENTHS:-0}"); do sleep 0.1; done
        exit "${TRAIN_CODE:-0}" """,
}
SLURM = {
    "SLURM_JOB_ID": "12345",
    "SLURM_JOB_NODELIST": "node[7-8]",
    "SLURM_JOB_NUM_NODES": "32",
    "SLURM_NTASKS": "256",
    "SLURM_CPUS_PER_TASK": "12",
}


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A working directory with the stand-ins and a config file."""
    for name, body in STAND_INS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    (tmp_path / "train.yaml").write_text("{}")
    return tmp_path


def start(cluster: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "NCCL_", "TORCH_"))}
    path = f"{cluster}/bin:{os.environ['PATH']}"
    env = kept | SLURM | {"PATH": path, "VENV": f"{cluster}/venv"} | variables
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(["bash", str(SBATCH), *arguments], cwd=cluster, env=env, **streams)  # type: ignore[call-overload]


def calls(cluster: Path) -> list[str]:
    path = cluster / "calls"
    return path.read_text().splitlines() if path.exists() else []


TRAINED = "python -m train.run base --config train.yaml --resume auto rank=3 local=3 world=256 master=node7:22345"


def test_slurm_checks_the_nodes_then_trains(cluster: Path) -> None:
    process = start(cluster, "train.yaml")
    assert "training is complete" in process.communicate(timeout=20)[0]
    assert (process.returncode, calls(cluster)) == (0, ["dcgmi diag -r 1", TRAINED])


def test_slurm_requeues_after_the_time_limit_signal(cluster: Path) -> None:
    process = start(cluster, "train.yaml", TRAIN_TENTHS="150")
    give_up_s = time.monotonic() + 15
    while not (cluster / "rank.pid").exists() and time.monotonic() < give_up_s:
        time.sleep(0.02)
    time.sleep(0.1)  # the stand-in installs its handler after it wrote its id
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    after = ["scancel --signal=TERM 12345", "saved", "scontrol requeue 12345"]
    assert (process.returncode, calls(cluster)) == (0, ["dcgmi diag -r 1", TRAINED, *after])


def test_slurm_requeues_failures_and_then_gives_up(cluster: Path) -> None:
    codes = []
    for _ in range(3):
        process = start(cluster, "train.yaml", TRAIN_CODE="7", MAX_FAILURES="2")
        process.communicate(timeout=20)
        codes.append(process.returncode)
    assert codes == [0, 0, 7]
    requeue = "scontrol requeue 12345"
    deeper = ["dcgmi diag -r 2", TRAINED]
    assert calls(cluster) == ["dcgmi diag -r 1", TRAINED, requeue, *deeper, requeue, *deeper]


def test_slurm_does_not_requeue_what_ended_for_bad_input(cluster: Path) -> None:
    for code, wanted in (("1", 0), ("2", 2), ("7", 0)):  # the mark of an earlier start does not count
        process = start(cluster, "train.yaml", TRAIN_CODE=code)
        output = process.communicate(timeout=20)[0]
        assert process.returncode == wanted
        assert ("not back into the queue" in output) == (code == "2")
    assert calls(cluster).count("scontrol requeue 12345") == 2


def test_slurm_stops_before_training_on_a_sick_node(cluster: Path) -> None:
    process = start(cluster, "train.yaml", DCGMI_CODE="1")
    output = process.communicate(timeout=20)[0]
    assert (process.returncode, calls(cluster)) == (1, ["dcgmi diag -r 1"])
    assert "preflight failed on" in output
    assert "GPU 5: fail" in output


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["absent.yaml"], "config = absent.yaml: cannot be read"),
        (["train.yaml", "vae"], "recipe = vae: must be base or refiner"),
    ],
)
def test_slurm_refuses_bad_arguments(cluster: Path, arguments: list[str], line: str) -> None:
    process = start(cluster, *arguments)
    assert process.communicate(timeout=20)[0].strip() == line
    assert (process.returncode, calls(cluster)) == (2, [])


def test_the_training_job_is_256_ranks_of_the_trainer() -> None:
    documents = yaml.safe_load_all((INFRA / "kubernetes" / "train.yaml").read_text())
    service, job = (document for document in documents)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    words = container["command"]
    flags = dict(word.removeprefix("--").split("=") for word in words if "=" in word)
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == int(flags["nnodes"])
    assert gpus == int(flags["nproc-per-node"]) and gpus * int(flags["nnodes"]) * 8 == 2048
    assert flags["rdzv-endpoint"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}:29500"
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert service["spec"]["ports"][0]["port"] == 29500
    assert words[words.index("-m") :] == ["-m", "train.run", "base", "--config", "/etc/darkroom/darkroom.yaml"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert "tini" in (INFRA / "Containerfile").read_text()


def test_the_training_job_fails_for_good_where_the_settings_are_wrong(tmp_path: Path) -> None:
    _, job = yaml.safe_load_all((INFRA / "kubernetes" / "train.yaml").read_text())
    (check,) = job["spec"]["template"]["spec"]["initContainers"]
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["containerName"]) == ("FailJob", check["name"])
    words = check["command"]
    settings = tmp_path / "darkroom.yaml"
    words = [sys.executable, *words[words.index("-m") :]]
    words[words.index("--config") + 1] = str(settings)
    for text, code in (
        ("train: {base: {}}", 0),
        ("train: {base: {batch: {micro_batch: 6}}}", 2),
        ("train: {base: {stpes: 6}}", 2),
    ):
        settings.write_text(text)
        done = subprocess.run(words, cwd=INFRA.parent, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert (code in rule["onExitCodes"]["values"]) == (code == 2)
