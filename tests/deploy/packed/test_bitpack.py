import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qsam2_ao.deploy.packed.bitpack import pack, packed_size, unpack
from qsam2_ao.errors import UnsupportedLayerError

BITS = range(2, 9)


def random_codes(n: int, bits: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2**bits, (n,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@given(bits=st.integers(2, 8), n=st.integers(0, 300), seed=st.integers(0, 1000))
def test_unpack_inverts_pack_in_exactly_bits_per_code(bits: int, n: int, seed: int) -> None:
    codes = random_codes(n, bits, seed)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-n // 8) * bits,) == (packed_size(n, bits),)
    assert torch.equal(unpack(packed, bits, n), codes)


def test_the_bytes_are_those_of_the_documented_layout() -> None:
    # a to h of the module's docstring: bit 0 set in a, d, f, g; bit 1 in a, b, e, h; bit 2 in b, c, h.
    codes = torch.tensor([0b011, 0b110, 0b100, 0b001, 0b010, 0b001, 0b001, 0b110])
    assert pack(codes, 3).tolist() == [
        0b01_10_00_11,  # g e c a
        0b10_01_01_10,  # h f d b
        0b1_0_0_0_0_1_1_0,
    ]
    assert pack(torch.tensor([0, 1, 2, 3, 3, 2, 1, 0]), 2).tolist() == [0b01_11_10_00, 0b00_10_11_01]
    assert pack(torch.tensor([1, 2, 3]), 4).tolist() == [1, 2, 3, 0]
    assert pack(torch.tensor([0, 128, 255]), 8).tolist() == [0, 128, 255, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_dtype_and_shape_is_read_in_row_major_order(dtype: torch.dtype) -> None:
    codes = random_codes(30, 4).reshape(2, 3, 5)
    expected = pack(codes.flatten(), 4)
    assert torch.equal(pack(codes.to(dtype), 4), expected)
    transposed = codes.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not transposed.is_contiguous()
    assert torch.equal(pack(transposed, 4), expected)


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
def test_compiles_without_graph_breaks_and_runs_on_meta(bits: int) -> None:
    codes = random_codes(77, bits)

    def roundtrip(codes: torch.Tensor) -> torch.Tensor:
        return unpack(pack(codes, bits), bits, 77)

    assert torch.equal(torch.compile(roundtrip, fullgraph=True, backend="aot_eager")(codes), codes)
    assert roundtrip(codes.to("meta")).shape == (77,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bits", BITS)
def test_cuda_packs_the_same_bytes(bits: int) -> None:
    codes = random_codes(1001, bits)
    packed = pack(codes.cuda(), bits)
    assert torch.equal(packed.cpu(), pack(codes, bits))
    assert torch.equal(unpack(packed, bits, 1001).cpu(), codes)


@pytest.mark.parametrize("bits", [0, 1, 9, -2, True, 4.0, "4"])
def test_impossible_bits_are_refused(bits: object) -> None:
    with pytest.raises(UnsupportedLayerError, match="bits must be an integer from 2 to 8"):
        pack(torch.zeros(8, dtype=torch.uint8), bits)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedLayerError, match="bits must be an integer from 2 to 8"):
        unpack(torch.zeros(8, dtype=torch.uint8), bits, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, 8, 255])
def test_codes_out_of_range_are_refused_not_masked(value: int) -> None:
    with pytest.raises(UnsupportedLayerError, match="codes of 3 bits run from 0 to 7"):
        pack(torch.tensor([0, value, 7]), 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_codes_must_be_integers(dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedLayerError, match="integer dtype"):
        pack(torch.zeros(8, dtype=dtype), 4)


@pytest.mark.parametrize(
    "packed",
    [torch.zeros(7, dtype=torch.uint8), torch.zeros(9, dtype=torch.uint8), torch.zeros(8, dtype=torch.int8)],
)
def test_packed_bytes_of_the_wrong_size_or_dtype_are_refused(packed: torch.Tensor) -> None:
    with pytest.raises(UnsupportedLayerError, match=r"10 codes of 4 bits are packed into uint8 \[8\]"):
        unpack(packed, 4, 10)
