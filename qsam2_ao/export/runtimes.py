"""Opening an exported network in its runtime: tensors in, tensors out, on the CPU."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, QSAM2Error
from ..optional import needed
from .settings import FILE, SIZE_KEY

if TYPE_CHECKING:
    import openvino

Network = Callable[..., tuple[Tensor, ...]]
_STARTING = threading.Lock()


def openvino_core() -> openvino.Core:
    """The one ``openvino.Core`` of this process, kept until it ends.

    OpenVINO's CPU plugin gives the thread a signal stack of its own and puts back the one it found when its ``Core``
    goes. Where two go in the order they came, that is one already unmapped, and the next Ctrl-C ends the process with
    a segmentation fault.

    Raises:
        MissingPackageError: OpenVINO is not installed.
    """
    with _STARTING:
        return _core(needed("openvino"))


@functools.cache
def _core(module: ModuleType) -> openvino.Core:
    # The first array that meets a tensor starts numpy's interface within OpenVINO. Two threads that are the first at
    # once wait for each other for ever: one has the interpreter's lock, the other what it waits for.
    module.Tensor(np.zeros(1, np.float32)).data.sum()
    return module.Core()


def open_network(folder: Path, name: str, runtime: str, image_size: int | None = None) -> Network:
    """Load a network, with as many threads as PyTorch has.

    Args:
        folder: Where ``qsam2 export`` wrote.
        name: Of the network, such as "image_encoder".
        runtime: "aoti", "onnx" or "openvino".
        image_size: Side of the input that the folder's settings name; None for whatever the file has.

    Raises:
        CheckpointError: The file is missing or damaged, was compiled for another size than the settings have, or there
            is no such runtime. The network raises it, too, where it is given what it cannot read.
        MissingPackageError: The runtime is not installed.
    """
    if runtime not in _OPENERS:
        raise CheckpointError(f"{folder} was exported for {runtime!r}, which this package does not know")
    suffix, opener = _OPENERS[runtime]
    path = folder / f"{name}{suffix}"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; export the model again")
    try:
        network = opener(path, image_size)
    except QSAM2Error:
        raise
    except Exception as error:  # every runtime has its own
        raise CheckpointError(f"{path} cannot be loaded ({_reason(error)}); export the model again") from error

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        try:
            return network(*inputs)
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be run ({_reason(error)}); if it and {FILE} are of different exports, export the model "
                "again"
            ) from error

    return run


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _aoti(path: Path, image_size: int | None) -> Network:
    package = torch._inductor.aoti_load_package(str(path))
    # The code in it trusts the sizes of what it is given. Packages of older versions don't tell theirs.
    size = package.get_metadata().get(SIZE_KEY)
    if None not in (size, image_size) and size != str(image_size):
        raise CheckpointError(
            f"{path} cannot be run on images of {image_size} pixels, which {FILE} asks for: it was compiled for those "
            f"of {size}. They are of different exports; export the model again"
        )

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            out = package(*(x.contiguous() for x in inputs))
        return (out,) if isinstance(out, Tensor) else tuple(out)

    return run


def _onnx(path: Path, image_size: int | None) -> Network:
    ort = needed("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        out = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        return tuple(torch.from_numpy(array) for array in out)

    return run


def _openvino(path: Path, image_size: int | None) -> Network:
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_MMAP": False,  # so that the weights stay as they are when the file changes
    }
    compiled = openvino_core().compile_model(str(path), "CPU", settings)
    requests, outputs = threading.local(), len(compiled.outputs)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        # A request holds its results: each thread has its own.
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        out = requests.own.infer([x.numpy() for x in inputs])
        return tuple(torch.from_numpy(out[i].copy()) for i in range(outputs))

    return run


_OPENERS: dict[str, tuple[str, Callable[[Path, int | None], Network]]] = {
    "aoti": (".pt2", _aoti),
    "onnx": (".onnx", _onnx),
    "openvino": (".xml", _openvino),
}
