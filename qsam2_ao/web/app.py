"""The routes of the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from tempfile import NamedTemporaryFile
from typing import Any
from urllib.parse import urlsplit

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ..data.decoding import max_pixels, pixel_limit
from ..data.masks import read_ids
from ..errors import DataError, QSAM2Error
from ..segmentation.prompts import schedule_of_items
from .answers import Models, overlay_png
from .clips import Clip, ClipStore, jpeg_bytes
from .downloads import FORMS, make_download
from .samples import SAMPLES, open_sample

MEGABYTE = 2**20
#: Files of the page -> their types. Nothing else of the disk is ever served by its name.
_STATIC = {"app.js": "text/javascript", "style.css": "text/css"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LARGEST_QUESTION = 4 * MEGABYTE


def make_app(models: Models, *, max_upload: int = 200 * MEGABYTE, max_frames: int = 300, hosts: list[str]) -> Starlette:
    """The application.

    Args:
        models: The models that answer.
        max_upload: Bytes of the largest file that may be opened.
        max_frames: Of longer clips, only the first so many are opened.
        hosts: Names by which the page may be asked for; others are refused, so that no other site's name can be made
            to mean this machine.

    The size limit of pictures that is in force where it is called (``pixel_limit``) holds for all that is opened.

    Example:
        >>> app = make_app(models, hosts=["127.0.0.1"])  # doctest: +SKIP
    """
    page = _Page(models, ClipStore(max_frames), max_upload)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            page.store.cancel_all()
            page.models.wait()
            page.store.close_all()

    clip = "/api/clips/{clip}"
    return Starlette(
        routes=[
            Route("/", page.index),
            Route("/static/{name}", page.static),
            Route("/api/models", page.about),
            Route("/api/clips", page.open, methods=["POST"]),
            Route("/api/samples/{number:int}", page.sample, methods=["POST"]),
            Route(clip, page.close, methods=["DELETE"]),
            Route(clip + "/frames/{frame:int}", page.frame),
            Route(clip + "/segment", page.segment, methods=["POST"]),
            Route(clip + "/track", page.track, methods=["POST"]),
            Route(clip + "/track", page.progress),
            Route(clip + "/masks/{model:int}/{frame:int}", page.mask),
            Route(clip + "/download/{model:int}/{form}", page.download),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
            Middleware(_Guard),
            Middleware(_SizeLimit, pixels=max_pixels()),
        ],
        exception_handlers={  # type: ignore[arg-type]
            QSAM2Error: _bad_input,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
        },
        lifespan=lifespan,
    )


async def _bad_input(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # which nobody reads


async def _http_error(request: Request, error: Any) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code)


class _Guard:
    """Security headers on every answer; no changes for pages of other sites."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        origin = request.headers.get("origin")
        if request.method not in ("GET", "HEAD") and origin and _host(origin) != request.headers.get("host"):
            await JSONResponse({"error": "this page answers to itself only"}, 403)(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *((k, v) for k, v in message["headers"] if k.lower() != b"cache-control"),
                    *((name.lower().encode(), value.encode()) for name, value in _HEADERS.items()),
                ]
            await send(message)

        await self._app(scope, receive, with_headers)


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


class _SizeLimit:
    """A size limit of pictures for every request and the threads that it starts, whatever the server resets."""

    def __init__(self, app: Callable[..., Awaitable[None]], pixels: int) -> None:
        self._app, self._pixels = app, pixels

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with pixel_limit(self._pixels):
            await self._app(scope, receive, send)


class _Page:
    """What each route does."""

    def __init__(self, models: Models, store: ClipStore, max_upload: int) -> None:
        self.models, self.store, self._max_upload = models, store, max_upload

    async def index(self, request: Request) -> Response:
        return _asset("index.html", "text/html")

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _STATIC:
            raise HTTPException(404, "no such file")
        return _asset(name, _STATIC[name])

    async def about(self, request: Request) -> Response:
        return JSONResponse(
            {
                "models": [entrant.to_dict() for entrant in self.models.entrants],
                "samples": list(SAMPLES),
                "max_upload": self._max_upload,
            }
        )

    async def open(self, request: Request) -> Response:
        """A file, as the body of the request."""
        name = request.query_params.get("name", "")
        with NamedTemporaryFile(dir=self.store.root) as file:
            async for chunk in _body(request, self._max_upload):
                await to_thread.run_sync(file.write, chunk)
            await to_thread.run_sync(file.flush)
            clip = await to_thread.run_sync(self.store.open_file, name, lambda path: shutil.copyfile(file.name, path))
        return self._described(clip)

    async def sample(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(SAMPLES):
            raise HTTPException(404, "no such sample")
        return self._described(await to_thread.run_sync(open_sample, self.store, number))

    def _described(self, clip: Clip) -> Response:
        width, height = clip.size
        facts = {"id": clip.id, "name": clip.name, "width": width, "height": height}
        return JSONResponse(facts | {"frames": clip.length, "stored_frames": clip.stored, "picture": clip.picture})

    async def close(self, request: Request) -> Response:
        self.store.close(request.path_params["clip"])
        return Response(status_code=204)

    def _clip(self, request: Request) -> Clip:
        try:
            return self.store.get(request.path_params["clip"])
        except KeyError:
            raise HTTPException(404, "this clip is no longer open; open it again") from None

    async def frame(self, request: Request) -> Response:
        clip, index = self._clip(request), request.path_params["frame"]
        content = await to_thread.run_sync(lambda: jpeg_bytes(clip.frame(index)))
        return Response(content, media_type="image/jpeg")

    async def segment(self, request: Request) -> Response:
        """Prompts on one frame -> every model's answer."""
        clip, question = self._clip(request), await _question(request)
        turn = clip.asked = clip.asked + 1
        index = question.get("frame", 0)
        if isinstance(index, bool) or not isinstance(index, int):
            raise DataError("frame must be a number")

        def answer() -> list[dict[str, Any]]:
            picture = clip.frame(index)
            schedule = schedule_of_items(question.get("prompts"), clip.size, 1, "prompts")
            prompts = {number: prompt for number, prompt in schedule[0].items() if prompt is not None}
            if not prompts:
                raise DataError("there is nothing to segment: give points or a box")
            answers, ids = self.models.segment(picture, prompts)
            if clip.picture:
                clip.keep_masks(turn, ids)
            return answers

        return JSONResponse({"answers": await to_thread.run_sync(answer)})

    async def track(self, request: Request) -> Response:
        """Prompts on any frames -> tracking begins."""
        clip, question = self._clip(request), await _question(request)

        def start() -> dict[str, Any]:
            schedule = schedule_of_items(question.get("prompts"), clip.size, clip.length, "prompts")
            return self.models.start_tracking(clip, schedule).to_dict()

        return JSONResponse(await to_thread.run_sync(start))

    async def progress(self, request: Request) -> Response:
        tracking = self._clip(request).tracking
        if tracking is None:
            raise HTTPException(404, "the clip is not tracked")
        return JSONResponse(tracking.to_dict())

    async def mask(self, request: Request) -> Response:
        clip, model, frame = self._clip(request), self._model(request), request.path_params["frame"]
        path = clip.mask_path(model, frame)
        if not path.is_file():
            raise HTTPException(404, "this frame is not tracked")
        return Response(await to_thread.run_sync(lambda: overlay_png(read_ids(path))), media_type="image/png")

    def _model(self, request: Request) -> int:
        number: int = request.path_params["model"]
        if number >= len(self.models.entrants):
            raise HTTPException(404, "no such model")
        return number

    async def download(self, request: Request) -> Response:
        clip, model, form = self._clip(request), self._model(request), request.path_params["form"]
        if form not in FORMS:
            raise HTTPException(404, f"masks come as {', '.join(FORMS)}")
        path = await to_thread.run_sync(make_download, clip, model, form)
        return FileResponse(path, filename=path.name)


def _asset(name: str, kind: str) -> Response:
    return Response((files("qsam2_ao.web") / "static" / name).read_bytes(), media_type=kind)


async def _body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body piece by piece, unless it is too large; what says so beforehand is not read at all."""
    announced = request.headers.get("content-length", "0")
    size = int(announced) if announced.isdigit() else 0
    if size <= limit:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            yield chunk
    if size > limit:
        raise HTTPException(413, f"the file is larger than the {limit / MEGABYTE:g} MiB of qsam2 web --max-upload")


async def _question(request: Request) -> dict[str, Any]:
    try:
        question = json.loads(b"".join([chunk async for chunk in _body(request, _LARGEST_QUESTION)]))
    except (ValueError, RecursionError):
        question = None
    if not isinstance(question, dict):
        raise DataError("wanted JSON with prompts")
    items = question.get("prompts")
    if isinstance(items, list) and any(isinstance(item, dict) and "mask" in item for item in items):
        raise DataError("the page takes clicks and boxes; a mask would be a file of this machine")
    return question
