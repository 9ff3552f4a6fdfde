"""Serving the page."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from ..comparison.contenders import contenders
from ..errors import QSAM2Error
from ..optional import needed
from ..reporting.notes import note
from .answers import Entrant, Models

LOCAL = ("127.0.0.1", "localhost")
_EVERYWHERE = ("0.0.0.0", "::")


def load_models(names: Sequence[str], device: str = "cpu") -> Models:
    """Load the models of a page.

    Args:
        names: One or more of ``MODEL`` or ``MODEL@TARGET``, as ``qsam2 compare`` takes them.
        device: Where they run.

    Raises:
        QSAM2Error: One cannot be loaded.
    """
    chosen = contenders(names, least=1)
    return Models([Entrant(each, each.load(device), each.file_bytes()) for each in chosen])


def hosts_of(host: str, names: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The names by which browsers may ask for the page.

    Args:
        host: Address to listen on.
        names: By which other machines ask for this one; at least one where the address stands for all of them.

    Returns:
        The one to tell people, and all.

    Example:
        >>> hosts_of("::1")
        ('[::1]', ['127.0.0.1', 'localhost', '[::1]'])
        >>> hosts_of("0.0.0.0", ["My-Machine"])
        ('my-machine', ['127.0.0.1', 'localhost', 'my-machine'])
    """
    names = [name.lower() for name in names]  # as browsers ask for them
    own = names[0] if host in _EVERYWHERE else f"[{host}]" if ":" in host else host
    return own, list(dict.fromkeys([*LOCAL, *names, own]))


def serve(
    models: Models,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_upload: int = 200 * 2**20,
    max_frames: int = 300,
    names: Sequence[str] = (),
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        models: The models.
        host: Address to listen on.
        port: Port to listen on.
        max_upload: Bytes of the largest file that may be opened.
        max_frames: Of longer clips, only the first so many are opened.
        names: By which other machines ask for this one.

    Pictures are opened up to the size limit that is in force (``pixel_limit``).

    Raises:
        QSAM2Error: The address cannot be listened on.
        MissingPackageError: Starlette or uvicorn is not installed.
    """
    if host in _EVERYWHERE and not names:
        raise QSAM2Error(f"--host {host} listens to every machine that can reach this one: say by which --name it may")
    own, hosts = hosts_of(host, names)
    needed("starlette")
    uvicorn = needed("uvicorn")
    from .app import make_app

    models.warm_up()
    note(f"open http://{own}:{port} in a browser; Ctrl-C ends it")
    app = make_app(models, max_upload=max_upload, max_frames=max_frames, hosts=hosts)
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False))
    try:
        with _hung_up(server.handle_exit):
            server.run()
    except SystemExit as error:
        raise QSAM2Error(f"port {port} of {host} cannot be listened on; choose another --port or --host") from error


@contextmanager
def _hung_up(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have a signal handled that uvicorn leaves to end the process: its terminal is gone. Under nohup it is ignored."""
    number: int | None = getattr(signal, "SIGHUP", None)
    main = threading.current_thread() is threading.main_thread()
    if number is None or not main or signal.getsignal(number) != signal.SIG_DFL:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)
