import copy
import io
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from qsam2_ao.deploy import int4
from qsam2_ao.deploy.int4 import Int4Linear, _kernel_operands, lower_int4, why_not_int4
from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.errors import CheckpointError, UnsupportedLayerError

# Largest error of an output over the largest output, against float64: float32 accumulates in another order
# than the reference, bfloat16 and float16 also round scales, inputs and outputs.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def make(
    shape: tuple[int, int] = (48, 96),
    bits: int = 4,
    group_size: int | None = None,
    *,
    per_tensor: bool = False,
    zero_point: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Linear, PackedIntxTensor]:
    generator = torch.Generator().manual_seed(bits)
    qparams = (1,) if per_tensor else (shape[0],) if group_size is None else (shape[0], -(-shape[1] // group_size))
    codes = torch.randint(0, 2**bits, shape, generator=generator)
    scale = torch.rand(qparams, generator=generator) + 0.1
    zero = torch.full(qparams, (2**bits - 1) / 2 if zero_point is None else zero_point)
    packed = PackedIntxTensor.from_codes(codes, scale, zero, bits, group_size, dtype)
    return nn.Linear(shape[1], shape[0], dtype=dtype), packed


def error(layer: nn.Module, module: nn.Linear, packed: PackedIntxTensor, x: torch.Tensor) -> float:
    with torch.no_grad():
        y = layer(x)
    assert y.dtype == x.dtype
    assert y.shape == (*x.shape[:-1], packed.shape[0])
    bias = module.bias.detach().double().to(x.device)
    reference = nn.functional.linear(x.double(), packed.dequantize(torch.float64).to(x.device), bias)
    return float((y - reference).abs().max() / reference.abs().max())


def x_of(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)


CASES = [
    {},
    {"bits": 2},
    {"bits": 3},
    {"bits": 2, "per_tensor": True},
    {"shape": (16, 128), "zero_point": 3.0},
    {"shape": (112, 64), "zero_point": 0.0},
    {"shape": (144, 256), "group_size": 64},
    {"shape": (64, 96), "group_size": 64, "bits": 3},  # the last group is shorter
    {"shape": (32, 160), "group_size": 32, "bits": 2},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_cpu_kernel_computes_the_packed_weight(case: dict[str, object], dtype: torch.dtype) -> None:
    module, packed = make(**case, dtype=dtype)  # type: ignore[arg-type]
    assert why_not_int4(module, packed, "cpu") is None
    lowered = lower_int4(module, packed, "cpu")
    for leading in [(5,), (2, 3, 4), ()]:
        x = x_of(*leading, packed.shape[1], dtype=dtype)
        assert error(lowered, module, packed, x) < TOLERANCE[dtype]
    assert lowered(x_of(0, packed.shape[1], dtype=dtype)).shape == (0, packed.shape[0])


@pytest.mark.parametrize("group", [32, 64, 128])
def test_chosen_group_sizes_agree(group: int) -> None:
    module, packed = make((32, 256))
    lowered = lower_int4(module, packed, "cpu", group)
    assert lowered.weight.block_size == [1, group]
    assert error(lowered, module, packed, x_of(4, 256)) < TOLERANCE[torch.float32]
    assert lower_int4(module, packed).weight.block_size == [1, 128], "the largest that fits by default"


def test_inputs_of_another_dtype_or_layout_and_autocast() -> None:
    module, packed = make()
    lowered = lower_int4(module, packed)
    assert error(lowered, module, packed, x_of(4, 96, dtype=torch.bfloat16)) < TOLERANCE[torch.bfloat16]
    strided = x_of(96, 4).t()
    assert not strided.is_contiguous()
    assert error(lowered, module, packed, strided) < TOLERANCE[torch.float32]
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert error(lowered, module, packed, x_of(4, 96)) < TOLERANCE[torch.bfloat16]


def test_the_lowered_layer_is_a_linear_layer_that_can_be_copied_and_compiled() -> None:
    module, packed = make()
    lowered = lower_int4(module.eval(), packed)
    assert isinstance(lowered, nn.Linear)
    assert (lowered.in_features, lowered.out_features, lowered.training) == (96, 48, False)
    assert lowered.bias is module.bias
    assert all(not p.requires_grad for name, p in lowered.named_parameters() if name == "weight")
    x = x_of(2, 4, 96)
    clone = copy.deepcopy(lowered)
    assert type(clone) is Int4Linear
    assert clone.weight.qdata.data_ptr() != lowered.weight.qdata.data_ptr()
    assert torch.equal(clone(x), lowered(x))
    with torch.no_grad():
        compiled = torch.compile(lowered, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), lowered(x))
    no_bias = lower_int4(nn.Linear(96, 48, bias=False), packed)
    assert no_bias.bias is None
    assert torch.allclose(no_bias(x) + module.bias, lowered(x), atol=1e-4)


def test_it_is_never_saved_nor_moved() -> None:
    module, packed = make()
    model = nn.Sequential(nn.ReLU(), lower_int4(module, packed))
    with pytest.raises(CheckpointError, match=r"^1 holds int4 weights in the layout of this machine.*save the packed"):
        model.state_dict()
    with pytest.raises(CheckpointError, match="layout of this machine"):
        torch.save(model, io.BytesIO())
    with pytest.raises(CheckpointError, match="layout of this machine"):
        pickle.dumps(model)
    with pytest.raises(UnsupportedLayerError, match="made for cpu cannot move to meta"):
        model.to("meta")
    assert not hasattr(model[1].weight, "inner_tensors")
    x = x_of(3, 96)
    before = model(x)
    assert torch.equal(model.to("cpu")(x), before)
    assert model.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


REASONS = [
    (nn.Conv2d(96, 48, 1), (48, 96, 1, 1), 4, "cpu", None, "nn.Linear only, not nn.Conv2d"),
    (nn.Linear(96, 48), (48, 96), 5, "cpu", None, "5 bits and int4 holds 4 at most"),
    (nn.Linear(96, 40), (40, 96), 4, "cpu", None, "out_features divisible by 16, not 40"),
    (
        nn.Linear(112, 48),
        (48, 112),
        4,
        "cpu",
        None,
        "in_features 112, and none of 32, 64, 128 does",
    ),
    (nn.Linear(96, 48), (48, 96), 4, "cpu", 64, "must divide in_features 96, and 64 does not"),
    (nn.Linear(96, 48), (48, 96), 4, "cpu", 48, "groups of 32, 64, 128, not 48"),
    (nn.Linear(96, 48), (48, 96), 4, "mps", None, "devices of type 'mps'"),
    (nn.Linear(96, 32), (48, 96), 4, "cpu", None, "the codes"),
    (nn.LayerNorm(96), (48, 96), 4, "cpu", None, "LayerNorm"),
]


@pytest.mark.parametrize(("module", "shape", "bits", "device", "group_size", "message"), REASONS)
def test_what_the_kernel_cannot_run_has_a_reason(
    module: nn.Module, shape: tuple[int, ...], bits: int, device: str, group_size: int | None, message: str
) -> None:
    codes = torch.zeros(shape, dtype=torch.uint8)
    packed = PackedIntxTensor.from_codes(codes, torch.ones(1), torch.ones(1), bits)
    reason = why_not_int4(module, packed, device, group_size)
    assert reason is not None
    assert message in reason
    assert reason.endswith(".")
    with pytest.raises(UnsupportedLayerError) as caught:
        lower_int4(module, packed, device, group_size)
    assert reason in str(caught.value)


def test_more_reasons() -> None:
    module, packed = make((48, 96), group_size=48)
    assert "the weight's own group size 48" in (why_not_int4(module, packed) or "")
    module, packed = make(dtype=torch.float64)
    assert "not torch.float64" in (why_not_int4(module, packed) or "")
    if not torch.cuda.is_available():
        assert why_not_int4(*make(), "cuda") == "No CUDA device is available."


@pytest.mark.parametrize(
    "moved", [("torchao.no.such.module", "Int4OpaqueTensor"), ("torchao.quantization", "NoTensor")]
)
def test_a_torchao_without_the_tensor_is_a_reason(monkeypatch: pytest.MonkeyPatch, moved: tuple[str, str]) -> None:
    monkeypatch.setitem(int4._TENSOR_CLASSES, "cpu", moved)
    assert f"has no {'.'.join(moved)}" in (why_not_int4(*make()) or "")


def test_gradients_through_the_kernel_are_an_error_not_zero() -> None:
    module, packed = make()
    with pytest.raises(RuntimeError, match=r"derivative .* not implemented"):
        lower_int4(module, packed)(x_of(2, 96).requires_grad_()).sum().backward()


@pytest.mark.parametrize("case", [*CASES, {"shape": (5, 7)}, {"shape": (9, 112), "group_size": 32}], ids=str)
def test_the_cuda_kernels_operands_are_the_packed_weight(case: dict[str, object]) -> None:
    """Before the shuffle that only the device can do: w = (u - 8) * s + z, with padding."""
    _, packed = make(**case)  # type: ignore[arg-type]
    codes, scale_and_zero, group = _kernel_operands(packed, None, 8, 1024, torch.float32)
    out, inputs = packed.shape
    rows, columns = -(-out // 8) * 8, -(-inputs // 1024) * 1024
    assert codes.shape == (rows, columns)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) <= 15
    assert scale_and_zero.shape == (columns // group, rows, 2)
    assert scale_and_zero.is_contiguous()
    scale, zero = (t.t().repeat_interleave(group, dim=1).double() for t in scale_and_zero.unbind(-1))
    weight = (codes.double() - 8) * scale + zero
    torch.testing.assert_close(weight[:out, :inputs], packed.dequantize(torch.float64), rtol=1e-6, atol=1e-6)
    assert torch.isfinite(weight).all()


def test_midrise_weights_of_any_bits_have_half_a_step_as_their_zero() -> None:
    for bits in (2, 3, 4):
        _, packed = make(bits=bits)
        _, scale_and_zero, _ = _kernel_operands(packed, None, 1, 1, torch.float32)
        assert torch.equal(scale_and_zero[..., 1], scale_and_zero[..., 0] / 2)


SCRIPT = """
import torch
from torch import nn
from qsam2_ao.deploy.int4 import lower_int4
from qsam2_ao.deploy.packed import PackedIntxTensor
codes = (torch.arange(64 * 96) * 2654435761 % 1000003 % 16).reshape(64, 96)
packed = PackedIntxTensor.from_codes(codes, torch.full((64,), 0.1), torch.full((64,), 7.5), 4)
layer = lower_int4(nn.Linear(96, 64, bias=False), packed)
x = torch.linspace(-1, 1, 2 * 96).reshape(2, 96)
error = (layer(x).double() - x.double() @ packed.dequantize().double().T).abs().max().item()
print(torch.backends.cpu.get_cpu_capability(), layer.weight.qdata.sum().item(), error < 1e-5)
print(layer.weight.qdata.flatten().tolist())
"""


@pytest.mark.slow
def test_every_instruction_set_makes_its_own_layout_and_computes_the_same() -> None:
    """Why it is never saved: the bytes differ between instruction sets; the results do not."""
    runs = {}
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"  # asked for where it is missing, torch crashes
    for capability in ("default", "avx2", *(["avx512"] if has_avx512 else [])):
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=True,
        )
        summary, layout = run.stdout.strip().split("\n")
        name, _, right = summary.split()
        assert right == "True", f"wrong results with {name}"
        runs[name] = layout
    if {"DEFAULT", "AVX2"} <= set(runs):
        assert runs["DEFAULT"] != runs["AVX2"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", [*CASES, {"shape": (5, 7)}, {"shape": (9, 112), "group_size": 32}], ids=str)
def test_cuda_kernel_computes_the_packed_weight(case: dict[str, object]) -> None:
    module, packed = make(**case)  # type: ignore[arg-type]
    assert why_not_int4(module, packed, "cuda") is None
    lowered = lower_int4(module, packed, "cuda")
    for dtype in (torch.bfloat16, torch.float32):
        x = x_of(3, 4, packed.shape[1], dtype=dtype, device="cuda")
        assert error(lowered, module, packed.cuda(), x) < 2e-2
