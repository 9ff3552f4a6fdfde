from __future__ import annotations

import copy
import gc
import io
import logging
import pickle
import warnings
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from data_parallel import run_ranks
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from sam2_runs import assert_identical, images, photos, run_image, run_video
from threads import at_once
from torch import fx, nn
from torch.ao.quantization import QConfigMapping, get_default_qat_qconfig
from torch.utils.checkpoint import checkpoint

from qsam2_ao import calibrate_activations, convert_qsam2, lsc_qconfig, prepare_qsam2
from qsam2_ao.errors import CalibrationError, GraphTraceError, NonFiniteError, QConfigError
from qsam2_ao.graph import REGIONS, find_parts
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.recipe import fake_quantizers, quantized_layers
from qsam2_ao.stage import stage_of

LAYERS = (nn.Linear, nn.Conv2d)


@pytest.fixture(scope="module")
def model() -> SAM2Base:
    return build_embedded(SAM2VideoPredictor)


@pytest.fixture(scope="module")
def prepared(model: SAM2Base) -> SAM2Base:
    return prepare_qsam2(model, "w4a8", calibration_data=photos(), progress=False)


@pytest.mark.slow
def test_the_class_stays_and_the_input_is_untouched(model: SAM2Base, prepared: SAM2Base) -> None:
    assert type(prepared) is SAM2VideoPredictor
    fresh = build_embedded(SAM2VideoPredictor)
    assert_identical(list(model.state_dict().values()), list(fresh.state_dict().values()))
    assert [name for name, _ in model.named_modules()] == [name for name, _ in fresh.named_modules()]


@pytest.mark.slow
def test_threads_prepare_at_once_and_others_go_on(model: SAM2Base) -> None:
    quiet = {"vrc": None, "progress": False}
    alone = prepare_qsam2(model, "w4a8", **quiet).state_dict()
    image = images(1, 96)
    with torch.no_grad():
        features = model.forward_image(image)["vision_features"]

    def serve() -> None:
        for _ in range(20):
            with torch.no_grad():
                assert torch.equal(model.forward_image(image)["vision_features"], features)

    before = nn.Module.__call__, nn.Module.__getattr__, list(warnings.filters)
    prepare = partial(prepare_qsam2, model, "w4a8", **quiet)
    first, second, _ = at_once(prepare, prepare, serve)
    assert (nn.Module.__call__, nn.Module.__getattr__, list(warnings.filters)) == before
    for prepared in (first, second):
        assert_identical(list(prepared.state_dict().values()), list(alone.values()))


def test_every_region_is_fake_quantized_graphs_and_lone_layers(model: SAM2Base, prepared: SAM2Base) -> None:
    parts = find_parts(prepared)
    assert {part.region for part in parts} == set(REGIONS)
    for part in parts:
        module, lone = prepared.get_submodule(part.path), isinstance(model.get_submodule(part.path), LAYERS)
        assert isinstance(module, LAYERS if lone else fx.GraphModule), part
        assert list(quantized_layers(module)), part


def test_every_quantizer_is_started_and_knows_its_name(prepared: SAM2Base) -> None:
    for name, quantizer in fake_quantizers(prepared):
        assert quantizer.is_initialized, name
        assert quantizer.name == name


def test_calibration_says_what_it_did(prepared: SAM2Base) -> None:
    info = stage_of(prepared).info
    assert (info["qconfig"], info["images"]) == ("w4a8", 2)
    layers = info["vrc"]["layers"]
    assert layers
    assert all(layer["layer"].startswith("image_encoder.") for layer in layers)


@pytest.mark.slow
def test_the_same_call_gives_the_same_model_on_any_number_of_threads(model: SAM2Base, prepared: SAM2Base) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        again = prepare_qsam2(model, "w4a8", calibration_data=photos(), progress=False)
    finally:
        torch.set_num_threads(before)
    ours, theirs = again.state_dict(), prepared.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_region_left_out_stays_as_it_was(model: SAM2Base) -> None:
    ours = prepare_qsam2(model, {"memory_encoder": "w4a16"})
    assert type(ours.image_encoder) is type(model.image_encoder)
    assert isinstance(ours.memory_encoder, fx.GraphModule)


def test_a_mapping_names_layers_of_the_model(model: SAM2Base) -> None:
    mapping = QConfigMapping().set_module_name("memory_encoder.out_proj", lsc_qconfig(3, None))
    ours = prepare_qsam2(model, mapping)
    assert [name for name, _ in quantized_layers(ours)] == ["memory_encoder.out_proj"]
    assert type(ours.image_encoder) is type(model.image_encoder)  # no layer of it is quantized


@torch.no_grad()
def test_torch_aos_own_qconfig_works(model: SAM2Base) -> None:
    qconfig = get_default_qat_qconfig("x86")
    ours = prepare_qsam2(model, {"memory_encoder": qconfig}, calibration_data=photos(), vrc=None, progress=False)
    converted = convert_qsam2(ours)
    for _, quantizer in fake_quantizers(ours):
        quantizer.disable_observer()
    batch = images(1, 96)
    for a, b in zip(run_video(ours.eval(), batch), run_video(converted, batch), strict=True):
        # Converted layers add in another order, which moves some inputs to the next code.
        assert float((a - b).detach().norm()) <= 3e-2 * float(b.detach().norm())


def test_hooks_that_will_not_be_called_are_named(model: SAM2Base, caplog: pytest.LogCaptureFixture) -> None:
    hooked = copy.deepcopy(model)
    paths = ("memory_encoder", "memory_encoder.fuser", "memory_encoder.fuser.layers.0.pwconv1")
    called = []
    for path in paths:
        hooked.get_submodule(path).register_forward_hook(lambda *_, path=path: called.append(path))
    with caplog.at_level(logging.WARNING):
        ours = prepare_qsam2(hooked, {"memory_encoder": "w4a8"})
    assert (
        "hooks are lost, since a prepared model's parts are graphs: memory_encoder, memory_encoder.fuser;"
        in caplog.text
    )
    called.clear()  # SAM2's own modules are called while they are traced
    ours.memory_encoder.train()(torch.randn(1, 64, 6, 6), torch.randn(1, 1, 96, 96))
    assert called == [paths[-1]]


def test_without_data_ranges_start_from_the_first_training_batch(
    model: SAM2Base, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ours = prepare_qsam2(model, {"image_encoder": "w4a8"})
    assert "VRC does not run" in caplog.text
    with pytest.raises(CalibrationError, match=r"image_encoder\.input_quantizer_0"):
        ours.image_encoder.eval()(images(1, 96))
    ours.train().image_encoder(images(1, 96))
    assert all(quantizer.is_initialized for _, quantizer in fake_quantizers(ours))
    ours.eval().image_encoder(images(1, 96))


@pytest.mark.slow
def test_activations_can_be_calibrated_later(model: SAM2Base) -> None:
    ours = prepare_qsam2(model, {"mask_decoder": "w4a8"})
    calibrate_activations(ours, photos(), progress=False)
    run_image(ours.eval(), images(1, 96))


@pytest.mark.slow
def test_a_training_step_moves_weights_and_ranges(prepared: SAM2Base) -> None:
    ours = copy.deepcopy(prepared).train()
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3)
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = sum((t.float() - 1).square().mean() for t in run_video(ours, images(1, 96)) if t.requires_grad)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    moved = {name for name, p in ours.named_parameters() if not torch.equal(p, before[name])}
    assert "image_encoder.trunk.blocks.0.attn.qkv.weight" in moved
    assert "image_encoder.trunk.blocks.0.attn.qkv.weight_fake_quant.log_alpha" in moved
    assert "memory_attention.input_quantizer_0.log_alpha" in moved


@pytest.mark.slow
def test_it_trains_under_bf16_autocast(prepared: SAM2Base) -> None:
    ours = copy.deepcopy(prepared).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = run_video(ours, images(1, 96))
    sum(t.float().square().mean() for t in outputs if t.requires_grad).backward()
    grads = [p.grad for _, p in ours.image_encoder.named_parameters() if p.grad is not None]
    assert grads
    assert all(bool(torch.isfinite(g).all()) for g in grads)


@pytest.mark.slow
def test_activation_checkpointing_changes_nothing(prepared: SAM2Base) -> None:
    batch = images(1, 96)

    def step(use_checkpoint: bool) -> dict[str, Any]:
        ours = copy.deepcopy(prepared).train()
        encoder = ours.image_encoder
        out = checkpoint(encoder, batch, use_reentrant=False) if use_checkpoint else encoder(batch)
        out["vision_features"].square().mean().backward()
        state = {name: value.clone() for name, value in ours.state_dict().items()}
        return state | {f"{n}.grad": p.grad for n, p in encoder.named_parameters() if p.grad is not None}

    plain, recomputed = step(False), step(True)
    assert plain.keys() == recomputed.keys()
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.slow
def test_copies_pickles_and_strict_state(model: SAM2Base, prepared: SAM2Base) -> None:
    batch = images(1, 96)
    expected = run_video(prepared.eval(), batch)
    assert_identical(run_video(copy.deepcopy(prepared), batch), expected)
    buffer = io.BytesIO()
    torch.save(prepared.state_dict(), buffer)
    buffer.seek(0)
    fresh = prepare_qsam2(model, "w4a8", vrc=None)
    fresh.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    assert_identical(run_video(fresh.eval(), batch), expected)
    assert_identical(run_video(pickle.loads(pickle.dumps(prepared)), batch), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_weights_in_another_dtype_are_cast_to_float32(model: SAM2Base, dtype: torch.dtype) -> None:
    other = copy.deepcopy(model)
    (other.image_encoder if dtype == torch.float16 else other).to(dtype)  # one of them mixed
    before = {name: value.dtype for name, value in other.state_dict().items()}
    options: dict[str, Any] = {"calibration_data": photos(1), "progress": False, "vrc": 0.1, "rounding": "gptq"}
    options["vrc_regions"] = ("memory_encoder",)
    ours = prepare_qsam2(other, {"memory_encoder": "w4a8"}, **options).state_dict()
    theirs = prepare_qsam2(copy.deepcopy(other).float(), {"memory_encoder": "w4a8"}, **options).state_dict()
    assert all(torch.equal(ours[name], value) and ours[name].dtype == value.dtype for name, value in theirs.items())
    assert not {value.dtype for value in ours.values()} & {torch.bfloat16, torch.float16, torch.float64}
    assert {name: value.dtype for name, value in other.state_dict().items()} == before


def test_a_checkpoint_in_bfloat16_loads_into_float32(model: SAM2Base, prepared: SAM2Base) -> None:
    ours = copy.deepcopy(prepared)
    state = {name: value.bfloat16() for name, value in model.state_dict().items()}
    ours.load_state_dict(state, strict=False)
    assert {value.dtype for value in ours.state_dict().values() if value.is_floating_point()} == {torch.float32}
    convert_qsam2(ours)


@pytest.mark.slow
def test_a_checkpoint_in_bfloat16_that_takes_over_leaves_ranges_in_float32(prepared: SAM2Base) -> None:
    ours = copy.deepcopy(prepared)
    state = {name: v.bfloat16() if v.is_floating_point() else v for name, v in prepared.state_dict().items()}
    ours.load_state_dict(state, assign=True)
    assert ours.memory_encoder.out_proj.weight.dtype == torch.bfloat16
    for name, quantizer in fake_quantizers(ours):
        ranges = {v.dtype for v in quantizer.state_dict().values() if v.is_floating_point()}
        assert ranges == {torch.float32}, name
    assert convert_qsam2(ours).memory_encoder.out_proj.weight.dtype == torch.bfloat16


@pytest.mark.slow
def test_inside_inference_mode_it_makes_a_model_that_trains(model: SAM2Base) -> None:
    recipe, options = {"memory_encoder": "w4a8", "obj_ptr_proj": "w4a8"}, {"vrc": None, "progress": False}
    expected = prepare_qsam2(model, recipe, calibration_data=photos(1), **options).state_dict()
    with torch.inference_mode():
        own = build_embedded(SAM2VideoPredictor)  # of inference tensors itself
        ours = prepare_qsam2(own, recipe, calibration_data=photos(1), **options)
        later = prepare_qsam2(own, recipe, **options)
        calibrate_activations(later, photos(1), progress=False)
        converted = convert_qsam2(ours)
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    for each in (ours, later):
        assert not any(value.is_inference() for value in each.state_dict().values())
        optimizer = torch.optim.SGD(each.train().parameters(), lr=1e-2)
        for _ in range(2):
            sum(t.square().mean() for t in run_video(each, images(1, 96)) if t.requires_grad).backward()
            optimizer.step()
    image = images(1, 96).requires_grad_()
    converted.image_encoder(image)["vision_features"].sum().backward()
    assert image.grad is not None


def test_weights_that_are_not_finite_are_refused(model: SAM2Base) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.memory_encoder.out_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"memory_encoder\.out_proj\.weight has NaN"):
        prepare_qsam2(broken, "w4a8")


@pytest.mark.slow
def test_what_is_not_used_any_more_is_freed() -> None:
    model = build_embedded(SAM2VideoPredictor)
    prepared = prepare_qsam2(model, "w4a8", calibration_data=photos(), vrc=None, progress=False)
    references = [weakref.ref(layer) for _, layer in quantized_layers(prepared)]
    converted = convert_qsam2(prepared)
    references += [weakref.ref(module) for module in (model, prepared, converted)]
    del model, prepared, converted
    gc.collect()
    assert not [reference() for reference in references if reference() is not None]


def test_bad_calls_are_refused(model: SAM2Base, prepared: SAM2Base) -> None:
    for vrc in ("atuo", -5.0, float("nan")):
        with pytest.raises(QConfigError, match='vrc must be "auto", a number'):
            prepare_qsam2(model, {"obj_ptr_proj": "w4a8"}, vrc=vrc, calibration_data=photos(1))
    with pytest.raises(QConfigError, match="unknown preset 'w5'"):
        prepare_qsam2(model, "w5")
    with pytest.raises(QConfigError, match="names no layer"):
        prepare_qsam2(model, QConfigMapping().set_module_name("no.such.layer", lsc_qconfig(4, 8)))
    with pytest.raises(GraphTraceError, match="prepared or converted already"):
        prepare_qsam2(prepared, "w4a8")
    with pytest.raises(CalibrationError, match=r"no image|empty"):
        prepare_qsam2(model, "w4a8", calibration_data=[])
    with pytest.raises(GraphTraceError, match="expected a SAM2 model"):
        prepare_qsam2(model.image_encoder, "w4a8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_whole_way_on_cuda(model: SAM2Base) -> None:
    ours = prepare_qsam2(copy.deepcopy(model).cuda(), "w4a8", calibration_data=photos(), progress=False)
    assert all(tensor.is_cuda for tensor in ours.state_dict().values())
    ours.train().image_encoder(images(1, 96).cuda())["vision_features"].square().mean().backward()
    converted, batch = convert_qsam2(ours), images(1, 96).cuda()
    with torch.no_grad():
        expected = ours.eval().image_encoder(batch)["vision_features"]
        torch.testing.assert_close(converted.image_encoder(batch)["vision_features"], expected)


@pytest.mark.slow
def test_data_parallel_ranks_hold_the_same_ranges(tmp_path: Path) -> None:
    first, second = run_ranks(_train_rank, tmp_path)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def _train_rank(rank: int) -> dict[str, torch.Tensor]:
    model = prepare_qsam2(build_embedded(), {"image_encoder": "w4a8"})
    ddp = torch.nn.parallel.DistributedDataParallel(model.image_encoder.train(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        ddp(images(1, 96, seed=10 * rank + step))["vision_features"].square().mean().backward()
        optimizer.step()
    return model.image_encoder.state_dict()


def test_the_global_generator_is_left_alone(model: SAM2Base) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    prepare_qsam2(model, {"mask_decoder": "w4a8"}, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
