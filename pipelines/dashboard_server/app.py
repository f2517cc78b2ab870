"""The web application: one page, its files, the questions, pictures, and the two things that it writes."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from curate.image import UnreadableImage
from pipelines.dashboard_server import training, what_if
from pipelines.dashboard_server.answers import QUESTIONS, Shown, answered
from pipelines.dashboard_server.filters import whole
from pipelines.dashboard_server.index import GONE
from pipelines.dashboard_server.pictures import SIDES_PX, NotShown, Pictures
from pipelines.dashboard_server.security import Guard
from pipelines.store import MissingTable, Root
from schemas.column import NewerTable

PAGE = Path(__file__).resolve().parents[1] / "dashboard_page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}
MOST_POSTED_BYTES = 4096


def application(this: Shown, *, names: tuple[str, ...], token: str | None, max_megapixels: float) -> Starlette:
    """Return the dashboard of a root; `token` None lets in whoever reaches it."""
    pictures = Pictures(this.index, max_megapixels)
    routes = [
        Route("/", _file("index.html")),
        *(Route(f"/page/{path.name}", _file(path.name)) for path in sorted(PAGE.iterdir()) if path.suffix in KINDS),
        *(Route(f"/api/{name}", _answered(this, name)) for name in QUESTIONS),
        Route("/picture/{number:int}", _picture(pictures)),
        Route("/drawn", _drawn(this)),
        Route("/grids/{run}/{step:int}", _grid(this)),
        Route("/api/label", _posted(lambda said: _label(this, said)), methods=["POST"]),
        Route("/api/save", _posted(lambda said: _save(this, said)), methods=["POST"]),
        Route("/api/refresh", _posted(lambda said: _refresh(this)), methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, names=names, token=token)])


def _file(name: str) -> Any:
    content, kind = (PAGE / name).read_bytes(), KINDS[Path(name).suffix]

    async def serve(request: Request) -> Response:
        return Response(content, media_type=kind)

    return serve


def _answered(this: Shown, name: str) -> Any:
    async def serve(request: Request) -> Response:
        return await _told(lambda: answered(this, name, request.query_params))

    return serve


async def _told(work: Callable[[], dict[str, Any]]) -> Response:
    """Answer in JSON; what the asker can mend is one line."""
    try:
        return _json(await run_in_threadpool(work))
    except ValueError as error:
        return JSONResponse({"error": str(error)}, 400)
    except LookupError:
        return JSONResponse({"error": "there is no such thing here, or it is not shown"}, 404)
    except (MissingTable, NewerTable) as error:
        return JSONResponse({"error": str(error)}, 409)
    except FileNotFoundError:
        return JSONResponse({"error": GONE}, 409)


def _json(value: Any) -> Response:
    return Response(json.dumps(plain(value), allow_nan=False), media_type="application/json")


def plain(value: Any) -> Any:
    """Return the value with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _picture(pictures: Pictures) -> Any:
    async def serve(request: Request) -> Response:
        try:
            side_px = whole("side", request.query_params.get("side", "192"), 1, 4096)
            if side_px not in SIDES_PX:
                raise ValueError(f"side = {side_px}: must be one of {', '.join(map(str, SIDES_PX))}")
            made = await run_in_threadpool(pictures.webp, request.path_params["number"], side_px)
        except NotShown:
            return PlainTextResponse("not shown", 404)
        except UnreadableImage as error:
            return PlainTextResponse(error.status, 415)
        except (FileNotFoundError, EOFError):
            return PlainTextResponse("the shard is gone", 410)
        except ValueError as error:
            return PlainTextResponse(str(error), 400)
        return Response(made, media_type="image/webp")

    return serve


def _drawn(this: Shown) -> Any:
    """Serve what python -m train.sample drew, encoded anew."""

    async def serve(request: Request) -> Response:
        try:
            return Response(await run_in_threadpool(_anew, this.index.root, "samples.png"), media_type="image/png")
        except FileNotFoundError:
            return PlainTextResponse("nothing was drawn yet: run python -m train.sample", 404)

    return serve


def _grid(this: Shown) -> Any:
    """Serve what a run drew after a step, encoded anew; `of` names a root beside the first one."""

    def draw(of: str, run: str, step: int) -> bytes:
        root = (this.beside[of] if of else this.index).root
        return _anew(root, training.grid_path(root, run, step))

    async def serve(request: Request) -> Response:
        of, run, step = request.query_params.get("of", ""), request.path_params["run"], request.path_params["step"]
        try:
            return Response(await run_in_threadpool(draw, of, run, step), media_type="image/png")
        except (LookupError, FileNotFoundError):
            return PlainTextResponse(f"no grid of {run!r} at step {step}", 404)

    return serve


def _anew(root: Root, path: str) -> bytes:
    """Return a PNG of the root as pixels alone, encoded once more."""
    with Image.open(root.open(path), formats=("PNG",)) as image:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _posted(work: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    async def serve(request: Request) -> Response:
        if request.headers.get("content-type", "").split(";")[0] != "application/json":
            return JSONResponse({"error": "content-type: must be application/json"}, 415)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_POSTED_BYTES:
                return JSONResponse({"error": f"body: must be at most {MOST_POSTED_BYTES} bytes"}, 413)
        try:
            said = json.loads(bytes(body))
        except (ValueError, RecursionError):
            return JSONResponse({"error": "body: must be JSON"}, 400)
        if not isinstance(said, dict):
            return JSONResponse({"error": "body: must be a JSON object"}, 400)
        return await _told(lambda: work(said))

    return serve


def _label(this: Shown, said: dict[str, Any]) -> dict[str, Any]:
    label = said.get("label")
    labelled = this.labels.write(str(said.get("score")), str(said.get("uid")), None if label is None else str(label))
    return {"labelled": labelled, "file": this.labels.file(str(said.get("score")))}


def _save(this: Shown, said: dict[str, Any]) -> dict[str, Any]:
    asked = {str(name): str(value) for name, value in said.items()}
    return dict(what_if.save(this.index, what_if.limits_asked(this.index, asked)))


def _refresh(this: Shown) -> dict[str, Any]:
    for index in (this.index, *this.beside.values()):
        index.refresh()
    return {"rows": this.index.rows("SELECT count(*) FROM board")[0][0]}
