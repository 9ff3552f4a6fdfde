from __future__ import annotations

import copy

import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao import convert_qsam2, prepare_qsam2
from qsam2_ao.benchmark.accuracy.rivals import RIVALS, rival_qconfig
from qsam2_ao.calibration import exercise, load_images
from qsam2_ao.graph.regions import region_of
from qsam2_ao.models.embedded import load_embedded
from qsam2_ao.quantizers import range_parameters
from qsam2_ao.recipe import fake_quantizers
from qsam2_ao.stage import stage_of
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage
from qsam2_ao.training.qat import train_qat

SMALL = ProceduralBatches((Stage(0, ((BatchKind(1, 2, 1), 0.5), (BatchKind(1, 2, 1, images=True), 0.5))),))


#: Weight and input bits: all that a model is quantized to, in one model.
BITS = {
    "image_encoder": (2, 4),
    "mask_decoder": (3, 8),
    "memory_attention": (4, None),
    "memory_encoder": (8, 8),
    "obj_ptr_proj": (2, 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", RIVALS)
def test_prepares_trains_and_converts(method):
    model = load_embedded(SAM2VideoPredictor)
    images, others = (torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    qconfig = {region: rival_qconfig(method, *bits) for region, bits in BITS.items()}
    prepared = prepare_qsam2(model, qconfig, calibration_data=images, vrc=None, progress=False)
    assert all(quantizer.name == name and quantizer.is_initialized for name, quantizer in fake_quantizers(prepared))
    learned = range_parameters(prepared)
    before = [parameter.detach().clone() for parameter in learned]
    train_qat(prepared, steps=2, batches=SMALL.stream(2), progress=False)
    assert not learned or any(not torch.equal(a, b) for a, b in zip(before, learned, strict=True))
    converted = convert_qsam2(prepared)
    records = stage_of(converted).layers
    assert {(region_of(r.name), (r.bits, r.activation_bits)) for r in records} == set(BITS.items())
    state = copy.deepcopy(prepared.state_dict())
    seen = []
    for m in (prepared.eval(), converted):
        for path in ("image_encoder", "memory_encoder", "sam_mask_decoder"):
            m.get_submodule(path).register_forward_hook(lambda *call: seen.append(_tensors(call[-1])))
        exercise(m, load_images(others))
    for name, value in prepared.state_dict().items():
        assert torch.equal(value, state[name]), name
    half = len(seen) // 2
    for own, deployed in zip(seen[:half], seen[half:], strict=True):
        for a, b in zip(own, deployed, strict=True):
            assert torch.equal(a, b)


def _tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for value in values for tensor in _tensors(value)]
