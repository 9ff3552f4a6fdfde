"""Write golden.json: what fms-model-optimizer's SAWB and PACT compute, for the tests to compare with.

It cannot be installed beside this package, as it pins other versions of its dependencies. In an environment of its own:

    pip install torch==2.13.0 "numpy<2.3" packaging
    pip install --no-deps fms-model-optimizer==0.8.7
    python tests/benchmark/accuracy/rivals/make_golden.py
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

VERSION = "0.8.7"
SEED = 0


def load_quantizers() -> Any:
    """The module of quantizers alone: the package around it imports far more."""
    installed = importlib.metadata.version("fms-model-optimizer")
    if installed != VERSION:
        raise SystemExit(f"the golden file is of fms-model-optimizer {VERSION}, not {installed}")
    package = importlib.util.find_spec("fms_mo")
    path = Path(package.submodule_search_locations[0]) / "quant" / "quantizers.py"
    spec = importlib.util.spec_from_file_location("fms_quantizers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sawb(fms: Any, bits: int, generator: torch.Generator) -> dict[str, Any]:
    """SAWB+ without zero alignment, on each output channel."""
    weight = (0.05 * torch.randn(3, 24, generator=generator)).requires_grad_()
    upstream = torch.randn(3, 24, generator=generator)
    clip = torch.zeros(3, 1)
    rows = [fms.SAWBPlusSTE.apply(row, bits, True, False, clip[i], True) for i, row in enumerate(weight)]
    output = torch.stack(rows)
    output.backward(upstream)
    return {
        "bits": bits,
        "weight": weight.tolist(),
        "upstream": upstream.tolist(),
        "clip": clip.flatten().tolist(),
        "output": output.tolist(),
        "weight_grad": weight.grad.tolist(),
    }


def pact(fms: Any, bits: int, low: float, high: float, relu: bool, generator: torch.Generator) -> dict[str, Any]:
    """Two-sided PACT with an integer zero point; with inputs on the clips too."""
    x = 2 * torch.randn(48, generator=generator)
    x[:2] = torch.tensor([low, high])
    x = (x.relu() if relu else x).requires_grad_()
    upstream = torch.randn(48, generator=generator)
    quantizer = fms.PACT2(bits, init_clip_valn=low, init_clip_val=high, align_zero=True)
    output = quantizer(x)
    output.backward(upstream)
    return {
        "bits": bits,
        "clips": [low, high],
        "x": x.tolist(),
        "upstream": upstream.tolist(),
        "output": output.tolist(),
        "x_grad": x.grad.tolist(),
        "clips_grad": [float(quantizer.clip_valn.grad), float(quantizer.clip_val.grad)],
    }


def main() -> None:
    """Write the file beside this script."""
    fms, generator = load_quantizers(), torch.Generator().manual_seed(SEED)
    clips = ((-2.0, 3.0, False), (-0.17, 2.5, False), (0.0, 3.0, True))
    golden = {
        "source": f"fms-model-optimizer {VERSION}",
        "seed": SEED,
        "sawb": [sawb(fms, bits, generator) for bits in (2, 3, 4, 5, 8)],
        "pact": [pact(fms, bits, *case, generator) for bits in (4, 8) for case in clips],
    }
    path = Path(__file__).with_name("golden.json")
    path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
