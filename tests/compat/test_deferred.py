"""Loading a packed model imports neither torch's compiler, DTensor nor all of torchao, which are there when wanted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_LOAD = """
import sys
from qsam2_ao import PackedIntxTensor, load_qsam2
load_qsam2(sys.argv[1], target="auto")
late = {"torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy", "torchao", "torchao.quantization"}
assert not late & set(sys.modules), late & set(sys.modules)
from torchvision.ops import roi_align
assert "torch._dynamo" not in sys.modules
import torchvision.ops.roi_align  # the module is hidden by the function of its name
assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") in (True, False)
import torchao
assert issubclass(PackedIntxTensor, torchao.utils.TorchAOBaseTensor)
from qsam2_ao.quantizers import LSCFakeQuantize
assert LSCFakeQuantize.__module__ == "qsam2_ao.quantizers.lsc"
"""


@pytest.mark.slow
def test_loading_imports_no_compiler(packed_file: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _LOAD, str(packed_file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
