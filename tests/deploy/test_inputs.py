import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qsam2_ao.deploy.inputs import ActivationQuantizer
from qsam2_ao.errors import NonFiniteError, QConfigError
from qsam2_ao.quantizers.affine import dequantize_affine, quantize_affine
from qsam2_ao.quantizers.lsc import LSCFakeQuantize


@given(
    bits=st.integers(1, 8),
    scale=st.floats(1e-4, 10),
    zero_point=st.integers(0, 255),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_rounds_to_the_grid_as_training_does(bits: int, scale: float, zero_point: int, dtype: torch.dtype) -> None:
    quantizer = ActivationQuantizer(0, 2**bits - 1, scale, zero_point)
    assert quantizer.bits == bits
    x = (torch.randn(4, 33, generator=torch.Generator().manual_seed(bits)) * scale * 2**bits).to(dtype)
    qparams = torch.tensor([scale]), torch.tensor([float(zero_point)])
    expected = dequantize_affine(quantize_affine(x, *qparams, 0, 2**bits - 1), *qparams).to(dtype)
    y = quantizer(x)
    assert y.dtype == dtype
    assert torch.equal(y, expected)
    assert y.unique().numel() <= 2**bits


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_trained_quantizer_in_eval_to_the_bit(bits: int, dtype: torch.dtype) -> None:
    trained = LSCFakeQuantize(bits=bits, is_weight=False)
    generator = torch.Generator().manual_seed(bits)
    for _ in range(3):
        trained(torch.randn(64, 32, generator=generator) * 3 + 1)
    trained.eval()
    deployed = ActivationQuantizer(*trained.codes, *trained.qparams())
    assert deployed.bits == bits
    x = (torch.randn(200, 32, generator=generator) * 5).to(dtype)
    with torch.no_grad():
        assert torch.equal(deployed(x), trained(x))
    assert deployed(x).unique().numel() > 2 ** (bits - 1)


def test_range_and_rounding_by_hand() -> None:
    quantizer = ActivationQuantizer(0, 3, torch.tensor([0.5]), torch.tensor(1.0))
    x = torch.tensor([-9.0, -0.5, -0.25, 0.0, 0.2, 0.3, 0.75, 1.0, 9.0])
    assert quantizer(x).tolist() == [-0.5, -0.5, -0.5, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0], "half to even"


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_casting_a_model_keeps_the_range_exact(cast: str) -> None:
    quantizer = ActivationQuantizer(0, 255, 0.1234567, 3.0)
    model = torch.nn.Sequential(copy.deepcopy(quantizer), torch.nn.Linear(3, 3))
    getattr(model, cast)()
    assert model[1].weight.dtype != torch.float32
    assert torch.equal(model[0].scale, quantizer.scale)
    assert model[0].scale.dtype == model[0].zero_point.dtype == torch.float32
    assert model.to("meta")[0].scale.device.type == "meta"


def test_state_round_trip_strictly() -> None:
    quantizer = ActivationQuantizer(-8, 7, 0.3, -1.0)
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert set(state) == {"scale", "zero_point"}
    meta = ActivationQuantizer(-8, 7, device="meta")
    assert meta.scale.device.type == "meta"
    for empty, assign in [(ActivationQuantizer(-8, 7), False), (meta, True)]:
        empty.load_state_dict(state, strict=True, assign=assign)
        x = torch.linspace(-5, 5, 101)
        assert torch.equal(empty(x), quantizer(x))


def test_compiles_and_exports() -> None:
    quantizer, x = ActivationQuantizer(0, 255, 0.02, 128.0), torch.linspace(-5, 5, 101)
    assert torch.equal(torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x), quantizer(x))
    assert torch.equal(torch.export.export(quantizer, (x,)).module()(x), quantizer(x))


def test_repr_shows_the_codes() -> None:
    assert repr(ActivationQuantizer(0, 15)) == "ActivationQuantizer(bits=4, quant_min=0, quant_max=15)"


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 1)])
def test_codes_that_are_no_range_are_refused(low: int, high: int) -> None:
    with pytest.raises(QConfigError, match=f"codes {low}..{high}"):
        ActivationQuantizer(low, high)


@pytest.mark.parametrize(("low", "high", "bits"), [(0, 1, 1), (0, 15, 4), (-127, 127, 8), (0, 255, 8), (0, 2, 2)])
def test_bits_are_what_the_codes_need(low: int, high: int, bits: int) -> None:
    assert ActivationQuantizer(low, high).bits == bits


def test_unusable_parameters_are_refused() -> None:
    with pytest.raises(NonFiniteError, match="scale of an activation is nan"):
        ActivationQuantizer(0, 255, math.nan)
    with pytest.raises(NonFiniteError, match="zero_point of an activation is inf"):
        ActivationQuantizer(0, 255, 1.0, math.inf)
    with pytest.raises(QConfigError, match=r"one value per tensor, not of shape \[3\]"):
        ActivationQuantizer(0, 255, torch.ones(3))
    for scale in (0.0, -1.0):
        with pytest.raises(QConfigError, match="must be positive"):
            ActivationQuantizer(0, 255, scale)
