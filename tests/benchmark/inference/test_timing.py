"""The measurements of the inference benchmark, on a small input."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import sam2
import torch
from omegaconf import OmegaConf

from qsam2_ao.benchmark.inference import footprint, video_memory
from qsam2_ao.benchmark.inference.methods import METHODS, ONE_DNN, REFERENCE, one_dnn
from qsam2_ao.benchmark.inference.parts import ENCODER, IMAGE, PARTS
from qsam2_ao.benchmark.inference.roofline import ceilings, work
from qsam2_ao.benchmark.inference.timing import _summary, measure
from qsam2_ao.benchmark.inference.workload import InferenceWorkload
from qsam2_ao.native import why_no_kernels


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> InferenceWorkload:
    """Of sam2.1-t with fewer layers, of a third of the width in the image encoder."""
    config = OmegaConf.load(Path(sam2.__file__).with_name("configs") / "sam2.1" / "sam2.1_hiera_t.yaml")
    trunk = {"embed_dim": 32, "stages": [1, 2, 3, 1], "global_att_blocks": [4, 5]}
    encoder = {"trunk": trunk, "neck": {"backbone_channel_list": [256, 128, 64, 32]}}
    layers = {"memory_attention": {"num_layers": 1}, "memory_encoder": {"fuser": {"num_layers": 1}}}
    files = tmp_path_factory.mktemp("inference")
    OmegaConf.save(OmegaConf.merge(config, {"model": {"image_encoder": encoder, **layers}}), files / "small.yaml")
    return InferenceWorkload(str(files / "small.yaml"), 128, 1, files)


def test_ratios_are_of_the_same_round() -> None:
    # A machine that gets three times slower in the second round.
    found = _summary([1.0, 3.0, 1.0], [2.0, 6.0, 2.0])
    assert found == {"ms": 1000, "spread": 500, "vs_float": 2, "rounds": 3}
    assert _summary([1.0, 1.0], None)["vs_float"] is None


def test_methods_name_parts_that_there_are() -> None:
    assert len({method.name for method in METHODS}) == len(METHODS)
    assert all(set(method.parts) <= set(PARTS) for method in METHODS)
    assert next(m for m in METHODS if m.name == REFERENCE).parts == tuple(PARTS)


@pytest.mark.slow
def test_methods_take_turns(workload: InferenceWorkload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsam2_ao.benchmark.inference.timing.ROUNDS", (2, 2))
    chosen = [m for m in METHODS if m.name in (REFERENCE, "qsam2 W4A8", "torch fp32 eager")]
    records = measure(workload, "memory attention, 1 frame", chosen, progress=False)  # the least to compile
    assert {path.name for path in workload.files.iterdir()} == {"small.yaml", "small.yaml-128px-w4a8.safetensors"}
    assert [r["method"] for r in records] == [REFERENCE, "qsam2 W4A8"]  # fp32 is timed on the encoder alone
    assert all(r["ms"] > 0 and r["rounds"] == 2 for r in records)
    assert records[0]["vs_float"] == 1
    assert (records[0]["model"], records[0]["size"], records[0]["threads"]) == (workload.model, 128, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_files_are_measured(tmp_path: Path) -> None:
    workload = InferenceWorkload("sam2.1-t", 128, 1, tmp_path)  # large enough for its memory to be seen
    workload.packed("w4a8")  # a process of its own would search ranges at length
    records = footprint.footprints(workload, ("w4a8",), progress=False)
    assert [r["file"] for r in records] == [footprint.CHECKPOINT, "w4a8"]
    assert records[0]["file_bytes"] > 3.5 * records[1]["file_bytes"]
    for r in records:
        assert 0 < r["lowered_seconds"] < r["mask_seconds"]
        assert 0 < r["lowered_bytes"] <= r["mask_bytes"]
    assert records[1]["load_bytes"] < records[0]["load_bytes"]


@pytest.mark.slow
def test_operations_are_counted(workload: InferenceWorkload) -> None:
    found = {r["part"]: r for r in work(workload)}
    one, seven = (found[f"memory attention, {n}"] for n in ("1 frame", "7 frames"))
    # Cross attention reads seven times as many keys; self attention and the feed-forward layers stay as they are.
    assert 2 < seven["attention_gflop"] / one["attention_gflop"] < 7
    assert 1 < seven["layer_gflop"] / one["layer_gflop"] < 2
    assert found[ENCODER]["layer_gflop"] > found[ENCODER]["attention_gflop"] > 0
    assert found[ENCODER]["tensor_mb"] > 0


def test_ceilings_are_of_what_this_machine_has() -> None:
    found = ceilings(1, side=256, copied=1 << 20)
    assert set(found) - {"int8"} == {"fp32", "bf16", "copy GB/s"}
    assert ("int8" in found) == (why_no_kernels() is None)
    assert found["fp32"] > 1
    assert found["copy GB/s"] > 0.1


@pytest.mark.slow
def test_memory_of_a_video_is_what_the_predictor_keeps(
    workload: InferenceWorkload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_memory, "FRAMES", 9)
    monkeypatch.setattr(video_memory, "STEP", 3)
    records = video_memory.video_memory(workload)
    assert [r["frames"] for r in records] == [3, 6, 9]
    # Of 128 px: 8 x 8 memories of 64 channels and a mask of 32 x 32, per frame.
    expected = 6 * (64 * 64 * 2 + 32 * 32 * 4 + 256 * 4) / 1e6
    assert records[-1]["kept_mb"] == pytest.approx(expected, abs=0.06)


@pytest.mark.slow
def test_the_picture_has_the_size_of_the_input(workload: InferenceWorkload, tmp_path: Path) -> None:
    assert workload.image().shape == (128, 128, 3)
    model = workload.build()
    run = PARTS[IMAGE](model, workload.image())
    with torch.inference_mode():
        run()
    state = torch.load(workload.checkpoint(), weights_only=True)["model"]
    assert set(state) == set(model.state_dict())
    assert all(value.dtype == torch.bfloat16 for value in state.values())


@pytest.mark.slow
def test_linear_layers_of_the_method_on_onednn_run_there() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64)).eval()
    x = torch.randn(32, 64)
    found = {}
    for name, context, settings in (("plain", nullcontext, {}), ("oneDNN", one_dnn, ONE_DNN)):
        with context(), torch.inference_mode():  # the plain one first: dynamo must not take its graph
            compiled = torch.compile(net.forward, **settings)
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
                compiled(x)
        found[name] = {event.key for event in profiler.key_averages()}
    assert "mkldnn::_linear_pointwise" in found["oneDNN"]
    assert "mkldnn::_linear_pointwise" not in found["plain"]
