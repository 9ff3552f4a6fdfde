"""Memories as codes, merged, left out, or fewer of their tokens: in SAM2's own predictor, on every target."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from qsam2_ao import compile_qsam2, load_embedded, load_qsam2, use_compact_memories
from qsam2_ao.compat.quiet import propagate_quietly
from qsam2_ao.data.procedural import Sequence, generate_sequence
from qsam2_ao.deploy.kernels.codes import CodeGrid
from qsam2_ao.deploy.memories.codes import KeepCodes, MemoryCodes, memory_grid
from qsam2_ao.deploy.targets import get_target
from qsam2_ao.errors import QConfigError, UnsupportedLayerError
from qsam2_ao.predictors import predictor_state
from qsam2_ao.segmentation import StreamingPredictor
from qsam2_ao.stage import stage_of

TARGETS = [
    pytest.param(target, marks=pytest.mark.skipif(why is not None, reason=str(why)))
    for target, why in ((name, get_target(name).why_not("cpu")) for name in ("packed", "int8", "onednn"))
]


@pytest.fixture(scope="module")
def clip() -> Sequence:
    return generate_sequence("val", 3, num_frames=6)


def load(file: Path, target: str = "packed") -> SAM2VideoPredictor:
    return load_qsam2(file, model_class=SAM2VideoPredictor, target=target)


def track(predictor: SAM2VideoPredictor, clip: Sequence, offload: bool = False) -> tuple[Tensor, dict[str, Any]]:
    state = predictor_state(predictor, clip.frames)
    if offload:
        state["storage_device"] = torch.device("cpu")
    for object_id in (1, 2):
        predictor.add_new_mask(state, 0, object_id, torch.from_numpy(clip.masks[0] == object_id))
    return torch.stack([logits for *_, logits in propagate_quietly(predictor, state)]), state


def memories(state: dict[str, Any]) -> list[Tensor]:
    kinds = ("cond_frame_outputs", "non_cond_frame_outputs")
    return [o["maskmem_features"] for d in state["output_dict_per_obj"].values() for k in kinds for o in d[k].values()]


@pytest.mark.parametrize("target", TARGETS)
def test_codes_halve_what_is_kept_and_are_the_values_that_attention_reads(
    target: str, packed_file: Path, clip: Sequence
) -> None:
    model = load(packed_file, target)
    before, floats = track(model, clip)
    assert use_compact_memories(model, codes=True) is model
    after, kept = track(model, clip, offload=True)
    assert all(type(memory) is Tensor for memory in memories(floats))
    found = memories(kept)
    assert len(found) == 12
    assert all(isinstance(m, MemoryCodes) and m.codes.dtype == torch.uint8 and m.device.type == "cpu" for m in found)
    # The first memory is of the same mask: its codes are those that the values' quantizer gives of it.
    memory, codes = memories(floats)[0], found[0]
    quantizer = load(packed_file).memory_attention.get_submodule(
        next(r for r in stage_of(model).layers if r.layer.endswith("cross_attn_image.v_proj")).activation  # type: ignore[arg-type]
    )
    assert torch.equal(quantizer(memory.float()), quantizer(codes.dequantize().float()))
    assert torch.equal(before[0], after[0])
    assert float(((before > 0) == (after > 0)).float().mean()) > 0.97
    assert torch.equal(track(pickle.loads(pickle.dumps(model)), clip)[0], after)
    use_compact_memories(model)
    assert torch.equal(track(model, clip)[0], before)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", [{"frames": 2}, {"frames": 1, "merge": False}, {"tokens": 0.5}], ids=str)
def test_fewer_memories_or_tokens_change_later_frames_only(
    options: dict[str, Any], target: str, packed_file: Path, clip: Sequence
) -> None:
    model = load(packed_file, target)
    before, _ = track(model, clip)
    after, _ = track(use_compact_memories(model, **options), clip)
    exact = 1 if "tokens" in options else 2 + options["frames"]  # so many frames have no more memories than that
    assert torch.equal(before[:exact], after[:exact])
    assert not torch.equal(before[exact:], after[exact:])
    assert torch.equal(track(copy.deepcopy(model), clip)[0], after)
    track(use_compact_memories(model, frames=6, tokens=1.0), clip)
    assert torch.equal(track(model, clip)[0], before)


def test_a_stream_keeps_the_same(packed_file: Path, clip: Sequence) -> None:
    model = use_compact_memories(load(packed_file), codes=True, frames=2, tokens=0.9)
    expected, _ = track(model, clip)
    stream = StreamingPredictor(model, num_frames=len(clip.frames))
    stream.start(clip.frames[0])
    for object_id in (1, 2):
        stream.prompt(object_id, mask=clip.masks[0] == object_id)
    for t, frame in enumerate(clip.frames[1:], 1):
        found = stream.step(frame)
        assert all(torch.equal(torch.from_numpy(found.logits[i]), expected[t, i - 1, 0]) for i in (1, 2))


def test_fewer_memories_for_a_float_model(clip: Sequence) -> None:
    model = load_embedded(SAM2VideoPredictor)
    before, _ = track(model, clip)
    after, _ = track(use_compact_memories(model, frames=2), clip)
    assert torch.equal(before[:4], after[:4])
    assert not torch.equal(before, after)


def test_what_cannot_be_is_refused_and_changes_nothing(packed_file: Path) -> None:
    model = load_embedded()
    with pytest.raises(UnsupportedLayerError, match="reads them as floats"):
        use_compact_memories(model, codes=True, frames=2)
    with pytest.raises(UnsupportedLayerError, match="SAM2's own module"):
        use_compact_memories(model, frames=2, tokens=0.5)
    with pytest.raises(QConfigError, match="frames must be 1 or more, not 0"):
        use_compact_memories(model, frames=0)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(QConfigError, match="tokens must be a share"):
            use_compact_memories(model, tokens=share)
    assert not model.memory_attention._forward_pre_hooks
    assert not hasattr(model.memory_encoder, "keep_memory")


def test_codes_refuse_to_be_written_to(packed_file: Path) -> None:
    model = load(packed_file)
    memory = MemoryCodes(torch.zeros(2, dtype=torch.uint8), memory_grid(model.memory_attention, stage_of(model).layers))
    with pytest.raises(UnsupportedLayerError, match="would write into a memory"):
        memory += 1
    for write in (
        lambda: torch.add(torch.ones(2).bfloat16(), 1, out=memory),
        lambda: torch._foreach_add_([memory], 1),
        lambda: memory.fill_(0),
    ):
        with pytest.raises(UnsupportedLayerError, match="would write into a memory"):
            write()
    out = torch.empty(2, dtype=torch.bfloat16)
    torch.add(memory, 1, out=out)
    assert torch.equal(out, memory.dequantize() + 1)
    assert memory.to("cpu", torch.bfloat16).codes.equal(memory.codes)  # type: ignore[attr-defined]
    assert type(memory.float()) is Tensor


def test_codes_of_any_layout_are_read_alike_and_nan_is_not_hidden(packed_file: Path) -> None:
    model = load(packed_file)
    keep = KeepCodes(memory_grid(model.memory_attention, stage_of(model).layers))
    memory = torch.randn(1, 8, 4, 4).bfloat16()
    plain, last = keep(memory), keep(memory.contiguous(memory_format=torch.channels_last))
    assert isinstance(last, MemoryCodes)
    assert torch.equal(plain.flatten(2).permute(2, 0, 1), last.flatten(2).permute(2, 0, 1))
    memory[0, 0, 0, 0] = torch.nan
    assert keep(memory) is memory


@pytest.mark.slow  # not for its time: torch does not compile what is instrumented for coverage
@pytest.mark.parametrize("target", TARGETS[:2])  # oneDNN's weights cannot be compiled
def test_a_compiled_model_follows_the_choice(target: str, packed_file: Path) -> None:
    eager, compiled = load(packed_file, target), compile_qsam2(load(packed_file, target), backend="eager")
    shapes = {"curr": (36, 1, 64), "memory": (80, 1, 32), "curr_pos": (36, 1, 64), "memory_pos": (80, 1, 32)}
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    outputs = []
    for tokens in (None, 0.25, None):
        found = []
        for model in (eager, compiled):
            use_compact_memories(model, tokens=tokens)
            with torch.inference_mode():
                found.append(model.memory_attention(**inputs, num_obj_ptr_tokens=8).float())
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
        outputs.append(found[1])
    assert (outputs[0] - outputs[1]).abs().max() > 0.01
    torch.testing.assert_close(outputs[0], outputs[2])


def test_codes_stand_for_the_same_in_any_default_dtype() -> None:
    grid = CodeGrid(0.0371, 131.0, 255)
    values = torch.randn(100)
    expected = KeepCodes(grid)(values)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = KeepCodes(grid)(values)
        assert torch.equal(found.codes, expected.codes)  # type: ignore[attr-defined]
        again = found.dequantize()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again, expected.dequantize())
