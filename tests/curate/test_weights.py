"""The registry, and fetching from a server on loopback: what is refused leaves nothing behind."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from curate.weights import (
    MissingWeights,
    UnknownWeights,
    UnpinnedWeights,
    Weight,
    WrongChecksum,
    checked_path_of,
    path_of,
    problem_of,
    registry,
)
from curate.weights.__main__ import main
from curate.weights.download import FetchFailed, fetch
from curate.weights.registry import REGISTRY_FILE, UNPINNED, WRONG_CHECKSUM

BODY = bytes(range(256)) * 9000  # more than two chunks
SHA256 = hashlib.sha256(BODY).hexdigest()


class Origin(BaseHTTPRequestHandler):
    """/good whole, /short less than announced, /redirect to /good, /escape to a local file, anything else 404."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        target = {"redirect": "/good/a.safetensors", "escape": "file:///etc/passwd"}.get(kind)
        self.send_response(302 if target else 200 if kind in ("good", "short") else 404)
        body = BODY if kind in ("good", "short") else b""
        self.send_header("Content-Length", str(len(body)))
        if target:
            self.send_header("Location", target)
        self.end_headers()
        self.wfile.write(body[:1000] if kind == "short" else body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def weight(*urls: str, sha256: str | None = SHA256, num_bytes: int | None = None) -> Weight:
    about = {"licence": "MIT", "purpose": "a test", "revision": "1"}
    return Weight(name="toy", kind="head", urls=urls, sha256=sha256, num_bytes=num_bytes, **about)


def write_registry(path: Path, url: str, sha256: str | None = SHA256) -> Path:
    fields = {"kind": "head", "urls": [url], "sha256": sha256, "num_bytes": len(BODY)}
    about = {"licence": "MIT", "purpose": "a test", "revision": "1"}
    path.write_text(yaml.safe_dump({"weights": {"toy_head": fields | about}}))
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


@pytest.mark.parametrize("route", ["good", "redirect"])
def test_fetch_publishes_the_file(origin: str, tmp_path: Path, route: str) -> None:
    path = fetch(weight(f"{origin}/{route}/a.safetensors"), tmp_path / "new")
    assert path == tmp_path / "new" / "toy.safetensors"
    assert path.read_bytes() == BODY
    assert files_in(tmp_path / "new") == ["toy.safetensors"]


def test_fetch_takes_a_file_url(tmp_path: Path) -> None:
    (tmp_path / "mirror.pth").write_bytes(BODY)
    path = fetch(weight((tmp_path / "mirror.pth").as_uri()), tmp_path / "cache")
    assert (path.name, path.read_bytes()) == ("toy.pth", BODY)


def test_fetch_goes_on_to_the_next_url(origin: str, tmp_path: Path) -> None:
    path = fetch(weight(f"{origin}/gone/a.npz", f"{origin}/short/a.npz", f"{origin}/good/a.npz"), tmp_path)
    assert path.read_bytes() == BODY


def test_fetch_does_not_ask_again_for_a_file_that_is_right(tmp_path: Path) -> None:
    (tmp_path / "toy.pth").write_bytes(BODY)
    assert fetch(weight("http://127.0.0.1:9/a.pth"), tmp_path) == tmp_path / "toy.pth"


def test_wrong_checksum_is_refused_and_leaves_nothing(origin: str, tmp_path: Path) -> None:
    with pytest.raises(WrongChecksum, match=f"expected {'0' * 64}, got {SHA256}; refused$"):
        fetch(weight(f"{origin}/good/a.pth", sha256="0" * 64), tmp_path)
    assert files_in(tmp_path) == []


def test_wrong_checksum_keeps_the_file_that_was_there(origin: str, tmp_path: Path) -> None:
    (tmp_path / "toy.pth").write_bytes(b"older")
    with pytest.raises(WrongChecksum):
        fetch(weight(f"{origin}/good/a.pth", sha256="0" * 64), tmp_path)
    assert (files_in(tmp_path), (tmp_path / "toy.pth").read_bytes()) == (["toy.pth"], b"older")


@pytest.mark.parametrize(
    ("route", "num_bytes", "reason"),
    [
        ("gone", None, "404"),
        ("short", None, f"expected {len(BODY)} bytes, got 1000$"),
        ("good", 5, "expected 5 bytes, got 1048576 and more$"),
        ("escape", None, "not allowed"),
    ],
)
def test_what_is_not_the_whole_file_is_refused(
    origin: str, tmp_path: Path, route: str, num_bytes: int | None, reason: str
) -> None:
    """Also with --pin, where no checksum would notice."""
    entry = weight(f"{origin}/{route}/a.pth", sha256=None, num_bytes=num_bytes)
    with pytest.raises(FetchFailed, match=reason):
        fetch(entry, tmp_path, pin=True)
    assert files_in(tmp_path) == []


def test_an_entry_without_checksum_waits_for_a_pin(
    origin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = weight(f"{origin}/good/a.pth", sha256=None)
    with pytest.raises(UnpinnedWeights, match="--pin"):
        fetch(entry, tmp_path)
    assert files_in(tmp_path) == []
    fetch(entry, tmp_path, pin=True)
    assert f"pinned sha256 {SHA256}" in capsys.readouterr().out
    pin = {"sha256": SHA256, "num_bytes": len(BODY), "revision": "1"}
    assert json.loads((tmp_path / "pins.json").read_text()) == {"toy": pin}
    assert files_in(tmp_path) == ["pins.json", "toy.pth"]
    (tmp_path / "toy.pth").write_bytes(BODY[1:])
    assert problem_of(entry, tmp_path) == WRONG_CHECKSUM
    assert problem_of(entry, fetch(entry, tmp_path).parent) is None


def test_a_pin_accepts_a_file_that_was_copied_here(tmp_path: Path) -> None:
    entry = weight("http://127.0.0.1:9/a.pth", sha256=None)
    (tmp_path / "toy.pth").write_bytes(BODY)
    assert problem_of(entry, tmp_path) == UNPINNED
    fetch(entry, tmp_path, pin=True)
    assert problem_of(entry, tmp_path) is None


def test_a_pin_does_not_override_the_registry(origin: str, tmp_path: Path) -> None:
    (tmp_path / "pins.json").write_text(json.dumps({"toy": {"sha256": SHA256}}))
    with pytest.raises(WrongChecksum):
        fetch(weight(f"{origin}/good/a.pth", sha256="0" * 64), tmp_path, pin=True)


def test_missing_weights_name_the_place_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights) as error:
        path_of("aesthetic_v2", tmp_path)
    command = f"python -m curate.weights fetch aesthetic_v2 --weights-dir {tmp_path}"
    place = tmp_path / "aesthetic_v2.pth"
    assert str(error.value) == f"weights 'aesthetic_v2' are not at {place}; get them with: {command}"


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeights, match="fetch clip_vit_bigg14_laion2b --pin$"):
        path_of("clip_vit_bigg14_laion2b")
    (tmp_path / "aesthetic_v2.pth").write_bytes(b"x")
    assert path_of("aesthetic_v2") == tmp_path / "aesthetic_v2.pth"


def test_the_command_in_the_message_works(origin: str, tmp_path: Path) -> None:
    """The words of the message are run as they are, in a new process."""
    listed = write_registry(tmp_path / "my registry.yaml", f"{origin}/good/a.pth", sha256=None)
    with pytest.raises(MissingWeights) as error:
        path_of("toy_head", tmp_path / "w", listed)
    command = str(error.value).partition("get them with: python")[2]
    root = REGISTRY_FILE.parents[1]
    subprocess.run(f"{sys.executable}{command}", shell=True, cwd=root, check=True, capture_output=True)
    assert path_of("toy_head", tmp_path / "w", listed).read_bytes() == BODY


def test_unknown_weights_list_near_names() -> None:
    with pytest.raises(UnknownWeights, match="did you mean aesthetic_v[12], aesthetic_v[12]"):
        path_of("asthetic_v2")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("urls", ("ftp://host/a.pth",)),
        ("urls", ("https://host/a.ckpt",)),
        ("urls", ("https://host/a.pth", "https://host/a.npz")),
        ("urls", ()),
        ("sha256", "ABC"),
        ("num_bytes", 0),
        ("kind", "pickle"),
    ],
)
def test_a_bad_entry_names_its_field(field: str, value: object) -> None:
    good: dict[str, Any] = {
        "name": "toy",
        "kind": "head",
        "urls": ("https://host/a.pth",),
        "sha256": None,
        "num_bytes": None,
    }
    about = {"licence": "MIT", "purpose": "a test", "revision": "1"}
    with pytest.raises(ValueError, match=f"^weights 'toy': {field} = "):
        Weight(**(good | about | {field: value}))


def test_a_misspelt_field_is_refused(tmp_path: Path) -> None:
    listed = write_registry(tmp_path / "r.yaml", "https://host/a.pth")
    listed.write_text(listed.read_text().replace("sha256:", "sha265:"))
    with pytest.raises(ValueError, match=r"toy_head: missing or unknown fields \['sha256', 'sha265'\]"):
        registry(listed)


def test_list_prints_every_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nsfw_vit_l14.pth").write_bytes(b"x")
    assert main(["list", "--weights-dir", str(tmp_path)]) == 0
    lines = {line.split()[0]: line.split()[1:4] for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == list(registry())
    assert lines["nsfw_vit_l14"] == ["head", "here", "sha256"]
    assert lines["clip_vit_bigg14_laion2b"] == ["open_clip", "-", "unpinned"]


def test_fetch_and_verify_commands(origin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = write_registry(tmp_path / "r.yaml", f"{origin}/good/a.pth")
    places = ["--registry", str(listed), "--weights-dir", str(tmp_path / "w")]
    assert main(["verify", "toy_head", *places]) == 1
    assert main(["verify", *places]) == 1
    assert "nothing to verify" in capsys.readouterr().err
    assert main(["fetch", "toy_head", *places]) == 0
    assert "toy_head: 2.30 MB in" in capsys.readouterr().err
    assert main(["verify", *places]) == 0
    assert capsys.readouterr().out.split() == ["toy_head", "ok"]
    (tmp_path / "w" / "toy_head.pth").write_bytes(b"changed")
    assert main(["verify", *places]) == 1
    assert capsys.readouterr().out.split() == ["toy_head", "wrong", "checksum"]


def test_errors_are_one_line(origin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = write_registry(tmp_path / "r.yaml", f"{origin}/good/a.pth", sha256="0" * 64)
    places = ["--registry", str(listed), "--weights-dir", str(tmp_path / "w")]
    assert main(["fetch", "toy_head", *places]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("curate.weights: toy_head: wrong checksum: expected 0000")
    assert main(["fetch", "toy_heat", *places]) == 2
    expected = "curate.weights: no weights named 'toy_heat' are registered; did you mean toy_head?\n"
    assert capsys.readouterr().err == expected
    assert files_in(tmp_path / "w") == []


def test_the_module_imports_neither_torch_nor_ray() -> None:
    code = "import sys, curate.weights; print(sorted({'torch', 'ray', 'open_clip', 'numpy'} & set(sys.modules)))"
    root = REGISTRY_FILE.parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


HEADS = Path(__file__).parents[2] / ".." / "shared" / "data" / "heads"
HEAD_FILES = {
    "aesthetic_v1": "aesthetic_v1/sa_0_4_vit_l_14_linear.pth",
    "aesthetic_v1_vit_b32": "aesthetic_v1/sa_0_4_vit_b_32_linear.pth",
    "aesthetic_v2": "aesthetic_v2/sac+logos+ava1-l14-linearMSE.pth",
    "nsfw_vit_l14": "nsfw/clip_ViT-L-14_openai_binary_nsfw_head.pth",
    "nsfw_vit_b32": "nsfw/clip_ViT-B-32_openai_binary_nsfw_head.pth",
    "watermark_vit_l14": "stability_detection/w_head_v1.npz",
    "porn_vit_l14": "stability_detection/p_head_v1.npz",
    "nsfw_vit_l14_keras": "nsfw/clip_autokeras_binary_nsfw.zip",
    "nsfw_vit_b32_keras": "nsfw/clip_autokeras_nsfw_b32.zip",
    "violence_vit_l14": "nsfw/violence_detection_vit_l_14.npy",
    "violence_vit_b32": "nsfw/violence_detection_vit_b_32.npy",
}


@pytest.mark.skipif(not HEADS.is_dir(), reason=f"no folder {HEADS}")
@pytest.mark.parametrize("name", HEAD_FILES)
def test_registered_heads_are_the_published_files(name: str, tmp_path: Path) -> None:
    entry, source = registry()[name], HEADS / HEAD_FILES[name]
    (tmp_path / entry.file_name).write_bytes(source.read_bytes())
    assert problem_of(entry, tmp_path) is None
    assert entry.num_bytes == source.stat().st_size


def test_every_head_is_covered_above() -> None:
    assert {name for name, entry in registry().items() if entry.kind == "head"} == set(HEAD_FILES)


def test_a_wrong_file_is_not_loaded(tmp_path: Path) -> None:
    """As a folder that was filled by hand may have one."""
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    entry = {"kind": "head", "urls": ["https://site.example/toy.npz"], "sha256": SHA256, "num_bytes": len(BODY)}
    entry |= {"licence": "MIT", "purpose": "test", "revision": "main"}
    file = tmp_path / "weights.yaml"
    file.write_text(yaml.safe_dump({"weights": {"toy": entry}}))
    for folder, body in ((right, BODY), (wrong, BODY[:-1])):
        folder.mkdir()
        (folder / "toy.npz").write_bytes(body)
    assert checked_path_of("toy", right, file) == right / "toy.npz"
    with pytest.raises(WrongChecksum, match=r"wrong/toy\.npz is not the registered file; get it with: python -m"):
        checked_path_of("toy", wrong, file)
