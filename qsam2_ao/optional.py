"""Packages that only some tasks need: they come with extras of qsam2_ao, and are imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingPackageError

#: Package -> the extra that brings it, and what it is for.
EXTRAS: dict[str, tuple[str, str]] = {
    "tensordict": ("train", "training"),
    "tensorboard": ("train", "training"),
    "scipy": ("train", "calibrating large layers and choosing bits"),
    "fvcore": ("train", "SAM2's own trainer"),
    "pandas": ("train", "SAM2's own trainer"),
    "pycocotools": ("train", "SAM2's own trainer"),
    "submitit": ("train", "submitting SAM2's own trainer to SLURM"),
    "cv2": ("train", "training on real pictures"),
    "av": ("video", "reading and writing video files"),
    "pillow_heif": ("heif", "reading HEIC pictures"),
    "transformers": ("hub", "models of transformers"),
    "matplotlib": ("plots", "drawing"),
    "vos_benchmark": ("eval", "scoring videos"),
    "skimage": ("plots", "showing photographs"),
    "starlette": ("web", "the page of qsam2 web"),
    "uvicorn": ("web", "the page of qsam2 web"),
    "onnx": ("export", "exporting"),
    "onnxscript": ("export", "exporting"),
    "openvino": ("export", "running in OpenVINO"),
    "onnxruntime": ("export", "running in ONNX Runtime"),
    "nncf": ("benchmark", "the comparison with NNCF"),
}
#: Package -> its name for pip, where that is another.
CALLED = {
    "cv2": "opencv-python",
    "pillow_heif": "pillow-heif",
    "skimage": "scikit-image",
    "vos_benchmark": "vos-benchmark",
}


def needed(name: str) -> ModuleType:
    """Import a package of :data:`EXTRAS`, or one of its modules.

    Args:
        name: Such as "av" or "scipy.linalg".

    Returns:
        The module.

    Raises:
        MissingPackageError: The package is not installed, with the command that installs it.

    Example:
        >>> needed("scipy.linalg").lapack
        <module 'scipy.linalg.lapack' ...>
    """
    package = name.partition(".")[0]
    extra, task = EXTRAS[package]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f'{task} needs the package {CALLED.get(package, package)}: pip install "qsam2_ao[{extra}]" ({error})',
            name=package,
        ) from error
