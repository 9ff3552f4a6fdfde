"""``qsam2 web``: a page on this machine to click on, where models answer side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Device, MaxPixels


def web(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL[@TARGET]]...",
            help="As for qsam2 compare; the first is the one that agreement is measured with. 'embedded' by default.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 8000,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="A name by which other machines ask for this one. Repeatable.", show_default=False
        ),
    ] = None,
    max_upload: Annotated[int, typer.Option(metavar="MIB", min=1, help="The largest file that can be opened.")] = 200,
    max_frames: Annotated[int, typer.Option(min=1, help="Of longer clips, only the first so many are opened.")] = 300,
    max_pixels: MaxPixels = None,
    device: Device = "cpu",
) -> None:
    """Click on pictures and clips in a browser, and see models answer side by side.

    Only this machine can open the page, unless --host says otherwise; then everyone who reaches it can use it: there is
    no password. Nothing is loaded from the network, and what is opened is forgotten when the server ends.

    Example: [bold]qsam2 web sam2.1_hiera_tiny.pt tiny-w4a8.safetensors[/bold]
    """
    from ..web.serve import load_models, serve
    from ..workflow import EMBEDDED

    loaded = load_models(models or [EMBEDDED], device)
    serve(loaded, host=host, port=port, max_upload=max_upload * 2**20, max_frames=max_frames, names=name or [])
