from __future__ import annotations

import pytest
import torch

from qsam2_ao.errors import NonFiniteError
from qsam2_ao.quantizers.flags import CachedFlags, FiniteCheck


def test_flag_follows_every_kind_of_write():
    flags = CachedFlags()
    buffer = torch.ones(1, dtype=torch.uint8)
    assert flags.read("on", buffer)
    buffer[0] = 0
    assert not flags.read("on", buffer)
    buffer.fill_(1)
    assert flags.read("on", buffer)
    assert not flags.read("on", torch.zeros(1, dtype=torch.uint8))


def test_flag_is_not_read_again_while_nothing_was_written(monkeypatch):
    flags = CachedFlags()
    buffer = torch.ones(1, dtype=torch.uint8)
    flags.read("on", buffer)
    reads = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: reads.append(1) or item(tensor))
    for _ in range(5):
        assert flags.read("on", buffer)
    assert not reads


def test_inference_tensors_have_no_version_and_are_read_every_time():
    with torch.inference_mode():
        buffer = torch.ones(1, dtype=torch.uint8)
        flags = CachedFlags()
        assert flags.read("on", buffer)
        buffer[0] = 0
        assert not flags.read("on", buffer)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_finite_check_names_the_module(bad):
    check = FiniteCheck()
    check((torch.zeros(2), torch.ones(1)), "quantizer of 'layer'")
    with pytest.raises(NonFiniteError, match="quantizer of 'layer'"):
        check((torch.zeros(2), torch.tensor([bad])), "quantizer of 'layer'")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the deferred check is for CUDA devices")
def test_finite_check_on_cuda_raises_at_a_later_call():
    check = FiniteCheck()
    bad = torch.tensor([float("nan")], device="cuda")
    check((bad,), "layer")
    torch.cuda.synchronize()
    with pytest.raises(NonFiniteError, match="layer"):
        check((bad,), "layer")
