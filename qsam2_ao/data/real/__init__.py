"""Real photographs with masks as training data: readers, warps, and clips composed of them.

:class:`~qsam2_ao.data.real.library.Library` opens a folder; :func:`~qsam2_ao.data.real.scenes.draw_scene` makes one
still or clip of it. Every draw is a function of the random generator that it is given.
"""

from ...optional import needed

needed("cv2")  # or else says what brings it, before a module of this folder imports it

from .library import Library  # noqa: E402
from .scenes import SCENE_KINDS, SceneKind, draw_scene  # noqa: E402

__all__ = ["SCENE_KINDS", "Library", "SceneKind", "draw_scene"]
