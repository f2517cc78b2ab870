"""The demo's sources: photographs that scikit-image and scikit-learn carry, as a crawl and as a dump.

Everything is drawn from one seed, so two machines make the same files.
"""

from __future__ import annotations

import io
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

SEED = 7
SCENES_OF_EACH = 9
SLOW_ANSWER_S = 2.0

PHOTOS = {
    "skimage/data/astronaut.png": "an astronaut in an orange suit before a flag",
    "skimage/data/camera.png": "a man with a film camera on a lawn",
    "skimage/data/chelsea.png": "a ginger cat with green eyes",
    "skimage/data/coffee.png": "a cup of espresso on a wooden table",
    "skimage/data/rocket.jpg": "a rocket on its launch pad by the sea",
    "skimage/data/motorcycle_left.png": "a motorcycle in a workshop",
    "skimage/data/hubble_deep_field.jpg": "distant galaxies against a black sky",
    "skimage/data/ihc.png": "stained tissue under a microscope",
    "skimage/data/retina.jpg": "the retina of a human eye",
    "skimage/data/moon.png": "craters on the surface of the moon",
    "skimage/data/coins.png": "old coins laid out in rows",
    "skimage/data/grass.png": "a lawn of short grass from above",
    "skimage/data/gravel.png": "grey gravel from above",
    "skimage/data/brick.png": "a wall of pale bricks",
    "skimage/data/clock_motion.png": "a blurred wall clock",
    "sklearn/datasets/images/china.jpg": "a Chinese pavilion between trees",
    "sklearn/datasets/images/flower.jpg": "a red flower in front of leaves",
}
"""Photograph, below its package's parent folder, and what it shows."""

VIEWS = ("A close view of", "A photograph of", "A detail of", "A wide view of", "A bright picture of", "Here we see")
LIGHTS = ("in soft light", "at noon", "with strong contrast", "on a quiet day", "from the left", "from the right")


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One answer of the origin server."""

    path: str
    body: bytes
    caption: str | None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0


def photographs() -> Iterator[tuple[str, str, Image.Image]]:
    """Yield name, subject and picture of each photograph."""
    for relative, subject in PHOTOS.items():
        package, _, rest = relative.partition("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"the demo's photographs come with {package}: install the extra 'demo'")
        path = Path(spec.origin).parent / rest
        yield path.stem, subject, Image.open(path).convert("RGB")


def crawl_offers() -> list[Offer]:
    """Return everything that the origin server has, good and bad."""
    rng, offers = random.Random(SEED), []
    for name, subject, photo in photographs():
        for number in range(SCENES_OF_EACH):
            scene = _scene(photo, rng)
            caption = _caption(subject, rng, number)
            offers.append(Offer(path=f"/{name}/{number}.jpg", body=_jpeg(scene, 93), caption=caption))
            offers.extend(_variants(name, number, scene, subject, rng))
        offers.append(_badly_captioned(name, subject, _scene(photo, rng), len(offers)))
    return offers + _error_images() + _oddities(rng)


def _scene(photo: Image.Image, rng: random.Random) -> Image.Image:
    """Return a part of the photograph: another picture for every purpose but copyright."""
    width = round(photo.width * rng.uniform(0.45, 0.75))
    height = round(min(photo.height, max(photo.height * rng.uniform(0.45, 0.75), width / 2.2)))
    left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
    scale = max(1.0, 220 / min(width, height))
    part = photo.crop((left, top, left + width, top + height))
    return part.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)


def _caption(subject: str, rng: random.Random, number: int) -> str:
    return f"{rng.choice(VIEWS)} {subject} {rng.choice(LIGHTS)}, no. {number + 1}"


def _variants(name: str, number: int, scene: Image.Image, subject: str, rng: random.Random) -> Iterator[Offer]:
    """Yield copies as the web makes them: re-encoded, resized, cropped, flipped, watermarked, byte for byte."""
    kind = number % 7
    caption = _caption(subject, rng, number)
    if kind == 0:
        yield Offer(path=f"/{name}/{number}-q50.jpg", body=_jpeg(scene, 50), caption=caption)
        yield Offer(path=f"/mirror/{name}/{number}.jpg", body=_jpeg(scene, 93), caption=caption)
    elif kind == 1:
        small = scene.resize((round(scene.width * 0.7), round(scene.height * 0.7)), Image.Resampling.BICUBIC)
        yield Offer(path=f"/{name}/{number}-small.webp", body=_encoded(small, "WEBP", quality=85), caption=caption)
    elif kind == 2:
        edge = round(scene.width * 0.02)
        cropped = scene.crop((edge, edge, scene.width - edge, scene.height - edge))
        yield Offer(path=f"/{name}/{number}-crop.jpg", body=_jpeg(cropped, 90), caption=caption)
    elif kind == 3:
        flipped = scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield Offer(path=f"/{name}/{number}-flip.jpg", body=_jpeg(flipped, 90), caption=caption)
    elif kind == 4:
        yield Offer(path=f"/{name}/{number}-mark.jpg", body=_jpeg(_watermarked(scene), 90), caption=caption)
    elif kind == 5:
        yield Offer(path=f"/{name}/{number}.png", body=_encoded(scene, "PNG"), caption=caption)


def _watermarked(scene: Image.Image) -> Image.Image:
    marked = scene.copy()
    ImageDraw.Draw(marked).text((scene.width // 2, scene.height - 18), "(c) example", fill=(255, 255, 255))
    return marked


def _badly_captioned(name: str, subject: str, scene: Image.Image, number: int) -> Offer:
    """Return a picture of its own with a missing, wrong or boilerplate caption; an e-mail address is masked."""
    bad = (
        None,
        f"IMG_{1000 + number}.JPG",
        f"{subject.title()}, ask jane.doe@example.com for prints",
        "Ein altes Foto aus dem Archiv unserer Stadt, aufgenommen im Sommer",
        f"{name}.jpg",
        "Une vieille photographie des archives de notre ville, prise en hiver",
        "buy buy buy buy buy buy buy buy",
        "nice one",
    )
    turn = list(PHOTOS).index(next(path for path in PHOTOS if name in path))
    caption = bad[turn // 2 % len(bad)] if turn % 2 else "Click here to enlarge the image"
    return Offer(path=f"/captions/{name}.jpg", body=_jpeg(scene, 92), caption=caption)


def _error_images() -> list[Offer]:
    """Return the one picture that a host shows instead of many others."""
    picture = Image.new("RGB", (320, 240), (238, 238, 238))
    ImageDraw.Draw(picture).text((90, 110), "image not available", fill=(90, 90, 90))
    body = _jpeg(picture, 90)
    return [
        Offer(path=f"/gone/{number}.jpg", body=body, caption=f"A picture of something lovely, number {number}")
        for number in range(20)
    ]


def _oddities(rng: random.Random) -> list[Offer]:
    photo = next(photographs())[2]
    whole = _jpeg(photo, 90)
    offers = [
        Offer(
            path=f"/icons/{size}.png",
            body=_encoded(photo.resize((size, size)), "PNG"),
            caption="A small icon of a person",
        )
        for size in (16, 24, 32, 48, 64)
    ]
    for number, box in enumerate(((0, 40, 512, 90), (0, 300, 512, 360), (60, 0, 110, 512))):
        strip = photo.crop(box).resize(((box[2] - box[0]) * 4, (box[3] - box[1]) * 4))
        offers.append(
            Offer(
                path=f"/strips/{number}.jpg",
                body=_jpeg(strip, 90),
                caption=f"A very long strip of a portrait, part {number}",
            )
        )
    page = b"<html><body>please sign in</body></html>"
    offers += [
        Offer(path="/broken/random.jpg", body=rng.randbytes(5000), caption="This file is only noise inside"),
        Offer(
            path="/broken/truncated.jpg", body=whole[: len(whole) // 2], caption="A portrait that ends half way down"
        ),
        Offer(path="/broken/page.jpg", body=page, caption="A page instead of a picture"),
        Offer(path="/broken/empty.jpg", body=b"", caption="A file without any bytes"),
        Offer(
            path="/slow/astronaut.jpg",
            body=_jpeg(photo, 88),
            caption="A portrait that takes its time",
            delay_s=SLOW_ANSWER_S,
        ),
    ]
    for number in range(4):
        offers.append(Offer(path=f"/missing/{number}.jpg", body=b"", caption="A picture that went away", status=404))
        tilted = photo.rotate(90 * number + 15, expand=True)
        headers = (("X-Robots-Tag", ("noai", "noindex", "darkroom: noai", "noimageai")[number]),)
        offers.append(
            Offer(
                path=f"/private/{number}.jpg",
                body=_jpeg(tilted, 90),
                caption="Please do not train on this",
                headers=headers,
            )
        )
    return offers


def write_dump(folder: Path) -> None:
    """Write a proprietary dump: images and captions.jsonl, with what dumps usually have wrong."""
    rng, lines = random.Random(SEED + 1), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, subject, photo in photographs():
        for number in range(3):
            scene = _scene(photo, rng)
            file = f"{name}-{number}.{'png' if number == 1 else 'jpg'}"
            _write_once(folder / file, _encoded(scene, "PNG") if number == 1 else _jpeg(scene, 95))
            if number < 2 or name != "moon":
                lines.append({"file_name": file, "caption": f"Archive: {_caption(subject, rng, number + 20)}"})
    lines.append({"file_name": "lost.jpg", "caption": "A picture that nobody can find any more"})
    _write_once(folder / "captions.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())


class Origin:
    """The origin server on loopback; `port` is kept between runs so that URLs, and so uids, stay."""

    def __init__(self, folder: Path) -> None:
        self._offers = {offer.path: offer for offer in crawl_offers()}
        self._server = _bind(folder, self._offers)
        self.port = self._server.server_address[1]
        self._list = folder / "urls.parquet"

    def __enter__(self) -> Origin:
        self._write_list()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _write_list(self) -> None:
        rows = [{"url": f"http://127.0.0.1:{self.port}{o.path}", "caption": o.caption} for o in self._offers.values()]
        rows.append({"url": None, "caption": "A caption that nobody has a picture for"})
        buffer = io.BytesIO()
        pq.write_table(
            pa.Table.from_pylist(rows, schema=pa.schema([("url", pa.string()), ("caption", pa.string())])), buffer
        )
        _write_once(self._list, buffer.getvalue())


def _bind(folder: Path, offers: dict[str, Offer]) -> ThreadingHTTPServer:
    """Listen on the port of the last run, or else on any free one."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "port.txt"
    ports = ([int(note.read_text())] if note.exists() else []) + [8731, 0]
    for port in ports:
        try:
            server = ThreadingHTTPServer(("127.0.0.1", port), _handler(offers))
        except OSError:
            continue
        note.write_text(str(server.server_address[1]))
        return server
    raise OSError("no free port on 127.0.0.1")


def _handler(offers: dict[str, Offer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            offer = offers.get(urlsplit(self.path).path) or Offer(path=self.path, body=b"", caption=None, status=404)
            time.sleep(offer.delay_s)
            self.send_response(offer.status)
            for name, value in (*offer.headers, ("Content-Length", str(len(offer.body)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(offer.body)

        def log_message(self, *_: object) -> None:
            return

    return Handler


def _write_once(path: Path, data: bytes) -> None:
    """Write the file unless it already has these bytes: its time tells the pipeline whether it changed."""
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    return _encoded(image, "JPEG", quality=quality)


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
