"""SAM2's video predictor without its own progress bars, for callers that show theirs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_sam2() -> Iterator[None]:
    """Switch off the bars that SAM2 prints while it loads and propagates, inside the ``with`` block only.

    Example:
        >>> with quiet_sam2():  # doctest: +SKIP
        ...     state = predictor.init_state("frames")
    """
    from sam2 import sam2_video_predictor
    from sam2.utils import misc

    modules = (sam2_video_predictor, misc)
    originals = [module.tqdm for module in modules]
    try:
        for module, original in zip(modules, originals, strict=True):
            module.tqdm = functools.partial(original, disable=True)
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.tqdm = original
