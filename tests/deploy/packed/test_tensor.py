import copy
import hashlib
import io
import math
import os
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.deploy.packed.form import qparam_shape
from qsam2_ao.errors import CheckpointError, NonFiniteError, UnsupportedLayerError
from qsam2_ao.quantizers.affine import broadcast_qparam, dequantize_affine, quantize_affine
from qsam2_ao.quantizers.lsc import LSCFakeQuantize

GROUP = 5
GRANULARITIES = ["tensor", "channel", "group"]
LINEAR_SHAPES = [(16, 32), (1, 7), (7, 1), (13, 33)]
CONV_SHAPES = [(4, 3, 7, 7), (1, 2, 1, 1), (6, 4, 3, 3)]


def make(
    shape: tuple[int, ...],
    bits: int = 4,
    granularity: str = "channel",
    seed: int = 0,
    group_size: int = GROUP,
) -> tuple[PackedIntxTensor, torch.Tensor]:
    """A packed weight with a mid-rise grid, and the weight computed plainly, element by element."""
    generator = torch.Generator().manual_seed(seed)
    group = group_size if granularity == "group" else None
    qparams = qparam_shape(shape, granularity, group)
    codes = torch.randint(0, 2**bits, shape, generator=generator)
    scale = torch.rand(qparams, generator=generator) + 0.01
    zero_point = torch.full(qparams, (2**bits - 1) / 2) + torch.randint(0, 3, qparams, generator=generator)
    flat = codes.reshape(shape[0], -1)
    column = torch.arange(flat.shape[1]) // (group or flat.shape[1])
    index = (slice(None), column) if group else (slice(None), None) if granularity == "channel" else (None, ...)
    reference = dequantize_affine(flat, scale[index], zero_point[index]).reshape(shape)
    return PackedIntxTensor.from_codes(codes, scale, zero_point, bits, group), reference


def linear(granularity: str = "channel", dtype: torch.dtype = torch.float32) -> nn.Linear:
    layer = nn.Linear(32, 16, dtype=dtype)
    layer.weight = nn.Parameter(make((16, 32), 4, granularity)[0].to(dtype), requires_grad=False)
    return layer.eval()


def x_of(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@given(
    bits=st.integers(2, 8),
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple),
    granularity=st.sampled_from(GRANULARITIES),
    seed=st.integers(0, 100),
)
def test_dequantize_is_the_affine_formula_to_the_bit(
    bits: int, shape: tuple[int, ...], granularity: str, seed: int
) -> None:
    packed, reference = make(shape, bits, granularity, seed)
    assert packed.shape == shape
    assert torch.equal(packed.dequantize(), reference)
    n, qparams = math.prod(shape), math.prod(packed.scale.shape)
    assert packed.nbytes_packed == -(-n // 8) * bits + 2 * 4 * qparams
    assert packed.unpack().dtype == torch.uint8
    again = PackedIntxTensor.from_codes(packed.unpack(), packed.scale, packed.zero_point, bits, packed.group_size)
    assert torch.equal(again.codes, packed.codes)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("bits", "grid"), [(2, "midrise"), (3, "asymmetric"), (4, "mean"), (8, "symmetric")])
def test_equals_the_trained_weight_quantizer_in_eval_to_the_bit(bits: int, grid: str, granularity: str) -> None:
    group = GROUP if granularity == "group" else None
    trained = LSCFakeQuantize(bits=bits, is_weight=True, granularity=granularity, group_size=group, grid=grid)
    weight = x_of(6, 4, 3, 3)
    trained(weight)
    trained.eval()
    scale, zero_point = trained.qparams()
    with torch.no_grad():
        fake_quantized = trained(weight)
    codes = quantize_affine(
        weight,
        broadcast_qparam(scale, weight.shape, group),
        broadcast_qparam(zero_point, weight.shape, group),
        *trained.codes,
    )
    packed = PackedIntxTensor.from_codes(
        (codes - trained.codes[0]).to(torch.uint8), scale, zero_point - trained.codes[0], bits, group
    )
    assert torch.equal(packed.dequantize(), fake_quantized)


def test_signed_codes_are_stored_with_an_offset() -> None:
    signed = torch.tensor([[-127, 0, 127]])
    packed = PackedIntxTensor.from_codes(signed + 127, torch.tensor([0.1]), torch.tensor([127.0]), bits=8)
    assert torch.equal(packed.dequantize(), signed * torch.tensor([0.1]))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", LINEAR_SHAPES)
def test_linear_equals_the_float_layer_to_the_bit(shape: tuple[int, int], granularity: str, bits: int) -> None:
    packed, reference = make(shape, bits, granularity)
    bias = x_of(shape[0])
    for leading in [(), (5,), (2, 3, 4), (0,)]:
        x = x_of(*leading, shape[1])
        assert torch.equal(F.linear(x, packed, bias), F.linear(x, reference, bias))
        assert torch.equal(F.linear(x, packed), F.linear(x, reference))
    assert torch.equal(F.linear(input=x, weight=packed, bias=bias), F.linear(x, reference, bias))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", CONV_SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 3},
        {"padding": "same"},
        {"padding": "valid", "dilation": 2},
        {"stride": (2, 1), "padding": (1, 0), "bias": False},
    ],
)
def test_conv2d_equals_the_float_layer_to_the_bit(
    shape: tuple[int, ...], granularity: str, options: dict[str, object]
) -> None:
    out, channels, *kernel = shape
    layer = nn.Conv2d(channels, out, tuple(kernel), **options)  # type: ignore[arg-type]
    packed, reference = make(shape, 3, granularity)
    x = x_of(2, channels, 15, 16)
    layer.weight = nn.Parameter(reference)
    expected = layer(x)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    assert torch.equal(layer(x), expected)


def test_grouped_and_reflect_padded_convolutions() -> None:
    packed, reference = make((6, 2, 3, 3), 4, "group")
    x = x_of(2, 6, 8, 8)
    layer = nn.Conv2d(6, 6, 3, padding=1, groups=3, padding_mode="reflect")
    layer.weight = nn.Parameter(reference)
    expected = layer(x)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_cast_the_float32_weight(dtype: torch.dtype) -> None:
    layer = linear(dtype=dtype)
    _, reference = make((16, 32))
    x = x_of(3, 32, dtype=dtype)
    assert layer.weight.dtype == dtype
    assert layer.weight.scale.dtype == torch.float32
    assert torch.equal(layer.weight.dequantize(), reference.to(dtype))
    assert torch.equal(layer(x), F.linear(x, reference.to(dtype), layer.bias))
    back = layer.weight.to(torch.float32)
    assert torch.equal(back.dequantize(), reference), "casting there and back loses nothing"


def test_autocast_and_inference_mode() -> None:
    layer, x = linear(), x_of(4, 32)
    _, reference = make((16, 32))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, F.linear(x, reference, layer.bias))
    with torch.inference_mode():
        assert torch.equal(layer(x), F.linear(x, reference, layer.bias))


def test_gradients_reach_the_input() -> None:
    layer, x = linear(), x_of(4, 32).requires_grad_()
    _, reference = make((16, 32))
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x)
    (expected,) = torch.autograd.grad(F.linear(x, reference, layer.bias).square().sum(), x)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("requires", [lambda w: w.requires_grad_(), lambda w: setattr(w, "requires_grad", True)])
def test_requiring_gradients_is_refused(requires: object) -> None:
    layer = linear()
    with pytest.raises(UnsupportedLayerError, match=r"cannot require gradients.*requires_grad=False"):
        requires(layer.weight)  # type: ignore[operator]
    with pytest.raises(UnsupportedLayerError, match="cannot require gradients"):
        nn.Parameter(make((2, 2))[0])
    layer.weight.requires_grad_(False)
    layer.weight.requires_grad = False
    assert not layer.weight.requires_grad


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda w: w + 1, "aten.add.Tensor"),
        (lambda w: w[:2], "aten.slice.Tensor"),
        (lambda w: w.t(), "aten.t.default"),
        (lambda w: x_of(3, 32) @ w.T, "aten.(t|permute|numpy_T)"),
        (lambda w: w.fill_(0), "aten.fill_"),
        (lambda w: w.sum(), "aten.sum"),
        (lambda w: F.embedding(torch.tensor([1]), w), "aten.embedding"),
        (lambda w: F.linear(w, x_of(4, 32)), "can only be the weight"),
        (lambda w: F.linear(w, w), "can only be the weight"),
        (lambda w: w.to(torch.int8), "floating dtype"),
        (lambda w: w.copy_(x_of(16, 32)), "cannot copy a Tensor into a PackedIntxTensor"),
        (lambda w: x_of(16, 32).copy_(w), "cannot copy a PackedIntxTensor into a Tensor"),
        (lambda w: w.copy_(make((16, 32), 3)[0]), "cannot copy a packed weight"),
    ],
)
def test_other_operations_are_refused_by_name(operation: object, name: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=name):
        operation(make((16, 32))[0])  # type: ignore[operator]


def test_aten_forms_work_where_torch_functions_are_off() -> None:
    packed, reference = make((16, 32))
    conv, conv_reference = make((6, 4, 3, 3), 4, "group")
    x, image = x_of(3, 32), x_of(1, 4, 5, 5)
    with torch._C.DisableTorchFunctionSubclass(), torch.inference_mode():
        assert torch.equal(F.linear(x, packed), F.linear(x, reference))
        assert torch.equal(F.conv2d(image, conv, padding=1), F.conv2d(image, conv_reference, padding=1))
        assert torch.equal(F.conv2d(image, conv, padding="same"), F.conv2d(image, conv_reference, padding=1))


def assert_same(a: torch.Tensor, b: PackedIntxTensor) -> None:
    assert isinstance(a, PackedIntxTensor)
    assert a.spec() == b.spec()
    for name, tensor in b.inner_tensors().items():
        assert torch.equal(getattr(a, name), tensor), name


def test_a_state_dict_with_the_old_path_of_the_class_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, file = linear("channel").weight, io.BytesIO()
    with monkeypatch.context() as old:
        old.setitem(sys.modules, "qsam2_ao.tensors.packed", sys.modules[PackedIntxTensor.__module__])
        old.setattr(PackedIntxTensor, "__module__", "qsam2_ao.tensors.packed")
        torch.save({"weight": weight}, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=True)["weight"], weight)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_copies_pickles_and_files_hold_the_same_weight(granularity: str) -> None:
    layer = linear(granularity)
    weight = layer.weight
    for same in (
        weight.detach(),
        weight.contiguous(),
        weight.clone(memory_format=torch.preserve_format),
        copy.deepcopy(weight),
        copy.deepcopy(layer).weight,
        pickle.loads(pickle.dumps(layer)).weight,
        weight.data,
    ):
        assert_same(same, weight)
    assert isinstance(copy.deepcopy(layer).weight, nn.Parameter)
    clone = weight.clone()
    clone.codes.zero_()
    assert weight.codes.any(), "a clone shares no memory"

    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert_same(state["weight"], weight)
    for assign in (False, True):
        other = nn.Linear(32, 16)
        empty = PackedIntxTensor.empty((16, 32), 4, granularity, weight.group_size)
        other.weight = nn.Parameter(empty, requires_grad=False)
        other.load_state_dict(state, strict=True, assign=assign)
        assert_same(other.weight, weight)
        assert torch.equal(other(x_of(3, 32)), layer(x_of(3, 32)))


def test_a_float_layer_refuses_packed_weights() -> None:
    with pytest.raises(RuntimeError, match="cannot copy a PackedIntxTensor into a Parameter"):
        nn.Linear(32, 16).load_state_dict(linear().state_dict())


def test_model_wide_casts_and_memory_formats() -> None:
    layer = nn.Conv2d(4, 6, 3)
    packed, reference = make((6, 4, 3, 3))
    layer.weight = nn.Parameter(packed, requires_grad=False)
    layer = layer.to(torch.bfloat16, memory_format=torch.channels_last)
    assert layer.weight.dtype == torch.bfloat16
    assert isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer.weight.dequantize(torch.float32), reference)


def test_meta_device_describes_a_weight_that_is_filled_later() -> None:
    packed, _ = make((6, 4, 3, 3), 3, "group")
    empty = PackedIntxTensor.empty((6, 4, 3, 3), 3, "group", GROUP, device="meta")
    assert empty.device.type == empty.codes.device.type == "meta"
    assert {n: (t.shape, t.dtype) for n, t in empty.inner_tensors().items()} == {
        n: (t.shape, t.dtype) for n, t in packed.inner_tensors().items()
    }
    assert F.conv2d(x_of(1, 4, 5, 5).to("meta"), empty).shape == (1, 6, 3, 3)
    assert_same(PackedIntxTensor.from_inner(empty.spec(), packed.inner_tensors()), packed)
    assert packed.to("meta").spec() == packed.spec()


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(1, 7), (13, 33), (4, 3, 7, 7)])
def test_spec_and_inner_tensors_rebuild_the_weight(shape: tuple[int, ...], granularity: str) -> None:
    packed, _ = make(shape, 3, granularity)
    assert_same(PackedIntxTensor.from_inner(packed.spec(), packed.inner_tensors()), packed)
    named = {**packed.spec(), "granularity": granularity}
    assert_same(PackedIntxTensor.from_inner(named, packed.inner_tensors()), packed)


SPEC = {"shape": [16, 32], "bits": 4, "granularity": "channel", "group_size": None, "dtype": "float32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "codes of a 3-bit weight"),
        ({"bits": 1}, "bits must be"),
        ({"bits": "4"}, "bits must be"),
        ({"shape": [16, 33]}, "codes of a 4-bit weight"),
        ({"shape": [16]}, "two or more"),
        ({"shape": [16, -32]}, "two or more"),
        ({"shape": "16,32"}, "list of integers"),
        ({"shape": [16, 32.0]}, "list of integers"),
        ({"granularity": "tensor"}, "scale of a 4-bit weight"),
        ({"granularity": "row"}, "granularity must be one of"),
        ({"group_size": 4}, "group_size=4 with granularity 'channel'"),
        ({"granularity": "group"}, "group_size=None with granularity 'group'"),
        ({"granularity": "group", "group_size": 0}, "group_size must be a positive integer"),
        ({"dtype": "float33"}, "unknown dtype 'float33'"),
        ({"dtype": "nn"}, "unknown dtype 'nn'"),
        ({"dtype": "int8"}, "floating dtype"),
        ({"extra": 1}, "has the keys"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    tensors = make((16, 32))[0].inner_tensors()
    assert PackedIntxTensor.from_inner(SPEC, tensors).bits == 4
    with pytest.raises(CheckpointError, match=message):
        PackedIntxTensor.from_inner({**SPEC, **change}, tensors)


def test_tensors_that_do_not_fit_are_refused() -> None:
    tensors = make((16, 32))[0].inner_tensors()
    for change, message in [
        ({"scale": tensors["scale"].double()}, r"scale .* must be torch.float32"),
        ({"zero_point": tensors["zero_point"][:3]}, r"zero_point .* must be torch.float32 \[16\]"),
        ({"codes": tensors["codes"].to(torch.int8)}, "codes .* must be torch.uint8"),
        ({"scale": tensors["scale"].to("meta")}, "scale is on meta"),
        ({"more": tensors["scale"]}, "has the tensors"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            PackedIntxTensor.from_inner(SPEC, {**tensors, **change})
    with pytest.raises(CheckpointError, match="has the tensors"):
        PackedIntxTensor.from_inner(SPEC, {"codes": tensors["codes"]})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_parameters_are_refused(value: float) -> None:
    codes, good, bad = torch.zeros(2, 2, dtype=torch.uint8), torch.ones(1), torch.tensor([value])
    with pytest.raises(NonFiniteError, match="scale"):
        PackedIntxTensor.from_codes(codes, bad, good, 4)
    with pytest.raises(NonFiniteError, match="zero_point"):
        PackedIntxTensor.from_codes(codes, good, bad, 4)


def test_from_codes_refuses_qparams_of_another_shape() -> None:
    codes = torch.zeros(4, 6, dtype=torch.uint8)
    with pytest.raises(UnsupportedLayerError, match=r"scale .* \[4\], not torch.float32 \[3\]"):
        PackedIntxTensor.from_codes(codes, torch.ones(3), torch.ones(3), 4)
    with pytest.raises(UnsupportedLayerError, match="zero_point"):
        PackedIntxTensor.from_codes(codes, torch.ones(4), torch.ones(1), 4)
    with pytest.raises(UnsupportedLayerError, match=r"\[4, 2\]"):
        PackedIntxTensor.from_codes(codes, torch.ones(4, 3), torch.ones(4, 3), 4, group_size=4)


def test_the_weight_keeps_no_tie_to_what_it_was_made_of() -> None:
    scale = torch.ones(1, requires_grad=True)
    packed = PackedIntxTensor.from_codes(torch.ones(2, 2, dtype=torch.uint8), scale, torch.zeros(1), 2)
    with torch.no_grad():
        scale.fill_(5)
    assert packed.dequantize().tolist() == [[1, 1], [1, 1]]
    assert not packed.scale.requires_grad


def test_repr_is_one_short_line() -> None:
    text = repr(make((16, 32), 3, "group")[0])
    assert text == (
        "PackedIntxTensor(bits=3, shape=(16, 32), granularity='group', group_size=5, dtype=torch.float32, device=cpu)"
    )


class Small(nn.Module):
    """A convolution and a linear layer, both packed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")
        self.linear = nn.Linear(4, 5)
        self.conv.weight = nn.Parameter(make((4, 3, 3, 3), 3, "group")[0], requires_grad=False)
        self.linear.weight = nn.Parameter(make((5, 4), 2)[0], requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(backend: str) -> None:
    model, x = Small().eval(), x_of(2, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        # A fused kernel may add in another order; outputs are of order one.
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert compiled(x).dtype == torch.bfloat16


@pytest.mark.parametrize("strict", [False, True])
def test_exports(strict: bool) -> None:
    model, x = Small().eval(), x_of(2, 3, 8, 8)
    program = torch.export.export(model, (x,), strict=strict)
    assert torch.equal(program.module()(x), model(x))


def test_a_compiled_function_takes_weights_of_other_bits() -> None:
    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for bits in (2, 3, 4):
        packed, reference = make((16, 32), bits)
        assert torch.equal(compiled(x_of(3, 32), packed), F.linear(x_of(3, 32), reference))
    a, b = make((16, 32), 4)[0], make((16, 32), 4, seed=3)[0]
    assert a._stable_hash_for_caching() == b._stable_hash_for_caching()
    assert a._stable_hash_for_caching() != make((16, 32), 3)[0]._stable_hash_for_caching()


HASH_SCRIPT = """
import hashlib, torch
from qsam2_ao.deploy.packed import PackedIntxTensor
codes = (torch.arange(48 * 96) * 2654435761 % 1000003 % 8).reshape(48, 96)
packed = PackedIntxTensor.from_codes(codes, torch.full((48,), 0.1), torch.full((48,), 3.5), 3)
print(torch.backends.cpu.get_cpu_capability())
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in packed.inner_tensors().values())).hexdigest())
print(hashlib.sha256(packed.dequantize().numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_processor() -> None:
    output = {}
    for capability in ("default", "avx2"):
        run = subprocess.run(
            [sys.executable, "-c", HASH_SCRIPT],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=True,
        )
        name, *output[capability] = run.stdout.split()
        assert capability != "default" or name.upper() in ("DEFAULT", "NO AVX")
    here = io.StringIO()
    exec(HASH_SCRIPT, {"print": lambda *a: print(*a, file=here)})
    assert output["default"] == output["avx2"] == here.getvalue().split()[1:]
    assert output["default"][0] != hashlib.sha256(b"").hexdigest()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_cuda(granularity: str) -> None:
    layer, x = linear(granularity), x_of(3, 32)
    expected = layer(x)
    layer = layer.cuda()
    assert layer.weight.codes.is_cuda
    assert torch.equal(layer.weight.dequantize().cpu(), make((16, 32), 4, granularity)[1])
    torch.testing.assert_close(layer(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)
