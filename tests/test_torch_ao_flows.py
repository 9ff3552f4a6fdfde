"""torch.ao's own flows on plain networks: what they convert equals the fake-quantized network, or they refuse."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao.quantization import (
    DeQuantStub,
    QConfigMapping,
    QuantStub,
    convert,
    enable_observer,
    fuse_modules_qat,
    prepare_qat,
)
from torch.ao.quantization.backend_config import (
    get_fbgemm_backend_config,
    get_native_backend_config,
    get_onednn_backend_config,
    get_qnnpack_backend_config,
)
from torch.ao.quantization.backend_config.x86 import get_x86_backend_config
from torch.ao.quantization.quantize_fx import (
    _convert_to_reference_decomposed_fx,
    convert_fx,
    convert_to_reference_fx,
    prepare_qat_fx,
)

from qsam2_ao import LSCFakeQuantize, lsc_qconfig, snap_weights
from qsam2_ao.errors import CalibrationError, NonFiniteError, QConfigError
from qsam2_ao.quantizers.grids import WEIGHT_GRIDS
from qsam2_ao.recipe import qsam2_backend_config

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.act2 = nn.ReLU()
        self.pointwise = nn.Conv2d(8, 6, 1)
        self.norm2 = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(
            2
        )  # means of codes would fall halfway between two codes, where torch's roundings differ
        self.head = nn.Conv2d(6, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act2(self.depthwise(self.act(self.norm(self.stem(x)))))
        return self.head(self.pool(self.norm2(self.pointwise(x))))


class ViTBlock(nn.Module):
    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.act, self.fc2 = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norm1(x)).reshape(2, 9, 3, self.heads, self.width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 9, self.width)
        x = x + self.proj(mixed)
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (mlp, (32, 16)),
    "ConvNet": (ConvNet, (4, 3, 10, 10)),
    "ViT block": (ViTBlock, (2, 9, 16)),
}
BACKENDS: dict[str, Callable[[], Any]] = {
    "ours": qsam2_backend_config,
    "native": get_native_backend_config,
    "x86": get_x86_backend_config,
    "fbgemm": get_fbgemm_backend_config,
    "qnnpack": get_qnnpack_backend_config,
    "onednn": get_onednn_backend_config,
}
# What converts, and its relative error: rounding of an 8-bit activation that falls between two codes, and, where
# integer kernels run, of what they compute.
FLOWS: dict[str, tuple[Callable[..., nn.Module], float]] = {
    "reference": (convert_to_reference_fx, 1e-2),
    "decomposed": (_convert_to_reference_decomposed_fx, 1e-2),
    "convert_fx": (convert_fx, 2e-2),
}
HELD = [
    (grid, bits) for grid in WEIGHT_GRIDS for bits in (2, 4, 8) if grid != "mean" and (grid, bits) != ("midrise", 8)
]
NOT_HELD = [("mean", 2), ("mean", 4), ("mean", 8), ("midrise", 8)]


def train_a_little(prepared: nn.Module, x: torch.Tensor) -> None:
    """Leave the ranges' start, so that weights and inputs are clipped."""
    for _ in range(2):
        prepared(x).square().mean().backward()
        with torch.no_grad():
            for name, parameter in prepared.named_parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
                if name.endswith("log_alpha"):
                    parameter -= 0.05


def trained(network: str, backend: str, qconfig: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A network after some steps in eval mode, its input and output."""
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    x = torch.randn(shape)
    mapping = QConfigMapping().set_global(qconfig)
    prepared = prepare_qat_fx(make().train(), mapping, (x,), backend_config=BACKENDS[backend]())
    train_a_little(prepared, x)
    prepared.eval()
    with torch.no_grad():
        return prepared, x, prepared(x)


def error_of(model: nn.Module, x: torch.Tensor, expected: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - expected).norm() / expected.norm())


def converted_by(conversion: Callable[..., nn.Module], prepared: nn.Module, backend: str) -> tuple[nn.Module, str]:
    """A copy converted, and LSC's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        converted = conversion(copy.deepcopy(prepared), backend_config=BACKENDS[backend]())
    return converted, " ".join(str(w.message) for w in caught if "weight quantizer" in str(w.message))


# --- graph mode -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "bits"), HELD)
@pytest.mark.parametrize("network", NETWORKS)
def test_our_backend_converts_to_the_fake_quantized_network(network: str, grid: str, bits: int) -> None:
    prepared, x, expected = trained(network, "ours", lsc_qconfig(bits, 8, grid=grid))
    for flow, (conversion, tolerance) in FLOWS.items():
        converted, warned = converted_by(conversion, prepared, "ours")
        assert any("quantized" in type(m).__module__ for m in converted.modules()), flow
        if flow == "convert_fx" and "can overflow" in warned:
            assert bits == 8
            assert network == "ConvNet" or not torch.cpu._is_vnni_supported()
        else:
            assert error_of(converted, x, expected) < (1e-5 if flow == "reference" else tolerance), flow


@pytest.mark.slow
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "ours"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("grid", "bits"), [("midrise", 2), ("midrise", 4), ("symmetric", 4), ("asymmetric", 8)])
def test_torch_aos_backends_convert_snapped_weights(network: str, backend: str, grid: str, bits: int) -> None:
    prepared, x, expected = trained(network, backend, lsc_qconfig(bits, 8, grid=grid))
    snap_weights(prepared)
    assert error_of(prepared, x, expected) < 1e-5, "snapping changes nothing"
    for flow, (conversion, tolerance) in FLOWS.items():
        converted, warned = converted_by(conversion, prepared, backend)
        if flow == "convert_fx" and "can overflow" in warned:
            assert bits == 8
            assert network == "ConvNet" or not torch.cpu._is_vnni_supported()
        else:
            assert error_of(converted, x, expected) < tolerance, flow


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "bits"), HELD)
@pytest.mark.parametrize("network", NETWORKS)
def test_torch_aos_backends_are_right_or_refuse_weights_off_the_grid(network: str, grid: str, bits: int) -> None:
    prepared, x, expected = trained(network, "x86", lsc_qconfig(bits, 8, grid=grid))
    decomposed = _convert_to_reference_decomposed_fx(copy.deepcopy(prepared), backend_config=get_x86_backend_config())
    assert error_of(decomposed, x, expected) < 1e-2
    for conversion in (convert_to_reference_fx, convert_fx):
        if bits == 8:
            converted, warned = converted_by(conversion, prepared, "x86")
            assert warned or error_of(converted, x, expected) < 2e-2
            assert ("one step off" in warned) <= (grid == "symmetric")
        else:
            with pytest.raises(QConfigError, match=r"snap_weights\(model\).*or choose 8 bits"):
                conversion(copy.deepcopy(prepared), backend_config=get_x86_backend_config())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ours", "native"])
@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(("grid", "bits"), NOT_HELD)
def test_grids_without_integer_codes_are_refused(flow: str, backend: str, grid: str, bits: int) -> None:
    prepared, _, _ = trained("MLP", backend, lsc_qconfig(bits, 8, grid=grid))
    with pytest.raises(QConfigError, match="choose grid="):
        FLOWS[flow][0](prepared, backend_config=BACKENDS[backend]())


@pytest.mark.parametrize("backend", ["ours", "native"])
def test_inputs_of_fewer_than_8_bits_are_clipped_or_refused(backend: str) -> None:
    prepared, x, expected = trained("MLP", backend, lsc_qconfig(4, 4))
    config = BACKENDS[backend]()
    assert (
        error_of(_convert_to_reference_decomposed_fx(copy.deepcopy(prepared), backend_config=config), x, expected)
        < 0.01
    )
    for conversion in (convert_to_reference_fx, convert_fx):
        with pytest.raises(QConfigError, match="8-bit activations"):
            conversion(copy.deepcopy(prepared), backend_config=config)


def test_scales_per_group_are_refused() -> None:
    prepared, _, _ = trained("MLP", "ours", lsc_qconfig(4, 8, granularity="group", group_size=8))
    with pytest.raises(QConfigError, match="choose granularity='channel'"):
        convert_to_reference_fx(prepared, backend_config=qsam2_backend_config())


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("network", NETWORKS)
def test_weight_only_networks_convert_with_our_backend(network: str, granularity: str) -> None:
    prepared, x, expected = trained(network, "ours", lsc_qconfig(3, None, granularity=granularity))
    for flow, (conversion, _) in FLOWS.items():
        converted = conversion(copy.deepcopy(prepared), backend_config=qsam2_backend_config())
        assert any("reference" in type(m).__module__ for m in converted.modules()), flow
        assert error_of(converted, x, expected) < 1e-5, flow


def test_weight_only_layers_that_torch_aos_backends_leave_in_float_keep_snapped_weights() -> None:
    prepared, x, expected = trained("ConvNet", "native", lsc_qconfig(4, None))
    snap_weights(prepared)
    converted = convert_fx(prepared, backend_config=get_native_backend_config())
    assert type(converted.head) is nn.Conv2d
    assert error_of(converted, x, expected) < 1e-5


def test_conversion_leaves_the_float_network_as_it_is() -> None:
    torch.manual_seed(0)
    model, x = mlp().train(), torch.randn(8, 16)
    original = copy.deepcopy(model.state_dict())
    for backend in ("ours", "native"):
        prepared = prepare_qat_fx(
            model, QConfigMapping().set_global(lsc_qconfig(2, 8)), (x,), backend_config=BACKENDS[backend]()
        )
        prepared(x)
        snap_weights(prepared.eval())
        convert_fx(prepared, backend_config=BACKENDS[backend]())
        for key, value in model.state_dict().items():
            assert torch.equal(value, original[key]), key


def test_8_bit_weights_that_torch_ao_clips_one_step_later_are_named() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 2)), torch.randn(8, 4)
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[-2.0, 0.5, 0.1, 1.0], [1.0, 0.5, -0.9, 0.3]])
    prepared = prepare_qat_fx(model.train(), QConfigMapping().set_global(lsc_qconfig(8, 8)), (x,))
    prepared(x)
    quantizer = prepared.get_submodule("0").weight_fake_quant
    with torch.no_grad():
        quantizer.alpha_bar.mul_(0.9)
        quantizer.log_alpha.add_(torch.tensor(0.9).log())
    prepared.eval()
    with torch.no_grad():
        expected = prepared(x)
    converted, warned = converted_by(convert_to_reference_fx, prepared, "native")
    assert "one step off" in warned
    steps = (converted.get_submodule("0").get_weight() - quantizer(model[0].weight)) / quantizer.qparams()[0][:, None]
    assert steps.round().tolist() == [[-1, 0, 0, 0], [0, 0, 0, 0]]
    snap_weights(prepared)
    converted, warned = converted_by(convert_to_reference_fx, prepared, "native")
    assert "one step off" not in warned
    assert error_of(converted, x, expected) < 1e-5


# --- eager mode -------------------------------------------------------------------------------------------


class Eager(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.quant, self.network, self.dequant = QuantStub(), network, DeQuantStub()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequant(self.network(self.quant(x)))


def eager(network: str, qconfig: Any) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    model, x = Eager(make()).train(), torch.randn(shape)
    if network == "ConvNet":
        fused = [["stem", "norm", "act"], ["depthwise", "act2"], ["pointwise", "norm2"]]
        model = fuse_modules_qat(model, [[f"network.{name}" for name in names] for names in fused])
    model.qconfig = qconfig  # type: ignore[assignment]
    prepared = prepare_qat(model)
    train_a_little(prepared, x)
    prepared.eval()
    with torch.no_grad():
        return prepared, x, prepared(x)


@pytest.mark.parametrize(("grid", "bits"), HELD)
@pytest.mark.parametrize("network", ["MLP", "ConvNet"])
def test_eager_mode_is_right_or_says_why_not(network: str, grid: str, bits: int) -> None:
    prepared, x, expected = eager(network, lsc_qconfig(bits, 8, grid=grid))
    if grid == "midrise":
        with pytest.raises(QConfigError, match=r"snap_weights\(model\)"):
            convert(prepared)
        snap_weights(prepared)
        assert error_of(prepared, x, expected) < 1e-5
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        converted = convert(prepared)
    if bits == 8 and not torch.cpu._is_vnni_supported():
        layers = [m for m in prepared.modules() if hasattr(m, "weight_fake_quant")]
        assert sum("can overflow" in str(w.message) for w in caught) >= len(layers) > 0
    else:
        assert error_of(converted, x, expected) < 2e-2


def test_eager_mode_refuses_what_it_would_not_clip() -> None:
    for qconfig, choose in ((lsc_qconfig(4, 8, grid="mean"), "choose grid="), (lsc_qconfig(8, 4), "8-bit activations")):
        prepared, _, _ = eager("MLP", qconfig)
        with pytest.raises(QConfigError, match=choose):
            convert(prepared)


# --- weights on the grid ----------------------------------------------------------------------------------


def test_a_weight_that_trains_on_is_no_longer_snapped() -> None:
    for leave in (
        lambda model: model.train(),
        lambda model: model.apply(enable_observer),
        lambda model: model.load_state_dict(model.state_dict()),
    ):
        prepared, x, _ = trained("MLP", "native", lsc_qconfig(4, 8))
        snap_weights(prepared)
        leave(prepared)
        prepared.eval()
        with pytest.raises(QConfigError, match="snap_weights"):
            convert_to_reference_fx(copy.deepcopy(prepared))
        with torch.no_grad():
            expected = prepared(x)
        snap_weights(prepared)
        assert error_of(convert_to_reference_fx(prepared), x, expected) < 1e-5


def test_snapping_refuses_a_weight_that_is_not_finite() -> None:
    prepared, _, _ = trained("MLP", "native", lsc_qconfig(4, 8))
    with torch.no_grad():
        prepared.get_submodule("0").weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="training may have diverged"):
        snap_weights(prepared)


def test_anyone_else_may_read_the_range() -> None:
    quantizer = LSCFakeQuantize(4, is_weight=True)
    quantizer(torch.randn(3, 10))
    scale, zero_point = quantizer.calculate_qparams()
    assert torch.equal(scale * 2, quantizer.qparams()[0])
    assert torch.equal(zero_point, torch.zeros(3, dtype=torch.int32))


# --- torch's kernels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "grid", "warns"), [(8, "symmetric", True), (7, "symmetric", False), (7, "midrise", True)]
)
def test_depthwise_weights_that_torchs_kernels_overflow_are_named(bits: int, grid: str, warns: bool) -> None:
    if torch.backends.quantized.engine not in ("fbgemm", "x86"):
        pytest.skip("the kernels of this machine sum in 32 bits")
    prepared, _, _ = trained("ConvNet", "native", lsc_qconfig(bits, 8, grid=grid))
    snap_weights(prepared)
    _, warned = converted_by(convert_fx, prepared, "native")
    assert ("for depthwise convolutions" in warned) == warns


# --- layers that torch.ao alone gets wrong ------------------------------------------------------------------


@pytest.mark.parametrize("convert", [convert_fx, convert_to_reference_fx, _convert_to_reference_decomposed_fx])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_convolutions_are_padded_as_in_training(padding_mode: str, convert: Callable[..., nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, padding_mode=padding_mode))
    x = torch.randn(2, 3, 8, 8)
    mapping = QConfigMapping().set_global(lsc_qconfig(4, 8))
    prepared = prepare_qat_fx(net.train(), mapping, (x,), backend_config=qsam2_backend_config())
    prepared(x)
    prepared.eval()
    with torch.no_grad():
        expected = prepared(x)
    assert error_of(convert(prepared, backend_config=qsam2_backend_config()), x, expected) < 1e-2


def test_a_leaf_with_layers_inside_converts() -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0))
    x = torch.randn(1, 5, 16)
    mapping = QConfigMapping().set_global(lsc_qconfig(4, 8))
    prepared = prepare_qat_fx(net.train(), mapping, (x,), backend_config=qsam2_backend_config())
    prepared(x)
    prepared.eval()
    expected = prepared(x).detach()
    reference = convert_to_reference_fx(prepared, backend_config=qsam2_backend_config())
    assert (reference(x) - expected).abs().max() < 1e-5


def test_errors_of_graph_mode_name_the_layer() -> None:
    x = torch.randn(2, 8)
    mapping = QConfigMapping().set_global(lsc_qconfig(4, 8))
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    prepared = prepare_qat_fx(net.train(), mapping, (x,), backend_config=qsam2_backend_config())
    with pytest.raises(CalibrationError, match="activation_post_process_0"):
        _convert_to_reference_decomposed_fx(copy.deepcopy(prepared).eval(), backend_config=qsam2_backend_config())
    prepared(x)
    with torch.no_grad():
        prepared.get_submodule("1").weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="of '1'"):
        snap_weights(prepared.eval())
