from __future__ import annotations

import torch.ao.nn.qat as nnqat
from torch import nn

from qsam2_ao.backend_config import qsam2_backend_config


def test_float_and_qat_layers_each_have_a_pattern() -> None:
    patterns = {config.pattern: config for config in qsam2_backend_config().configs}
    assert set(patterns) == {nn.Linear, nnqat.Linear, nn.Conv2d, nnqat.Conv2d}
    assert patterns[nn.Linear].qat_module is nnqat.Linear
    assert patterns[nn.Conv2d].qat_module is nnqat.Conv2d
