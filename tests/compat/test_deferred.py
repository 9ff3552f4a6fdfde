"""Loading and running a packed model imports neither torch's compiler, DTensor nor all of torchao."""

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


_SEGMENT = """
import sys
from typer.testing import CliRunner
from qsam2_ao.cli.main import app
done = CliRunner().invoke(app, ["segment", *sys.argv[1:]])
assert done.exit_code == 0, done.output
late = {"torch._dynamo", "torch._inductor", "sympy", "matplotlib", "scipy", "torchao.quantization"}
assert not late & set(sys.modules), late & set(sys.modules)
"""


@pytest.mark.slow
def test_a_mask_needs_no_compiler(packed_file: Path, picture: Path, tmp_path: Path) -> None:
    arguments = [str(packed_file), str(picture), "--point", "48,48", "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", _SEGMENT, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_loading_imports_no_compiler(packed_file: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _LOAD, str(packed_file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
