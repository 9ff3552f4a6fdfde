"""What the GPU's kernels compile to: instructions of the inner loops, tensor cores, registers. No GPU is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SPEC = importlib.util.find_spec("triton")
BIN = Path(str(SPEC.origin)).parent / "backends/nvidia/bin" if SPEC else Path()
MISSING = [tool for tool in ("ptxas", "nvdisasm", "cuobjdump") if not (BIN / tool).exists()]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"this package triton has no {', '.join(MISSING)}"),
    pytest.mark.slow,  # some seconds a kernel
]
POINTERS = {"x": "*i8", "table": "*i8", "alpha": "*fp32", "beta": "*fp32", "residual": "*i8", "out": "*i8"}
NUMBERS = {"rows": "i32", "n": "i32", "k": "i32", "stride": "i32"}
STEPS = dict.fromkeys(("out_steps", "out_zero_point", "out_max"), "fp32")
FLOATS = dict.fromkeys(("out_scale", "out_zero_point", "out_max"), "fp32")


def _types(names: str, kind: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


@cache
def code(arguments: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compiled_code.py")
    run = subprocess.run(
        [sys.executable, program, arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def linear(bits: int, capability: int, **changes: Any) -> dict[str, Any]:
    """The matrix multiplication of fc1 (GELU, codes out) on a tile of 128 x 128."""
    options = {
        "num_warps": 8,
        "num_stages": 3 if bits >= 4 else 2,
        **{k: changes.pop(k) for k in ("num_warps",) if k in changes},
    }
    steps = {8: (128, 1) if capability == 90 else (32, 2), 4: (64, 2), 3: (32, 8), 2: (64, 4)}[bits]
    constants = {
        "BITS": bits,
        "ACTIVATION": "gelu",
        "RESIDUAL": False,
        "CODES": True,
        "BLOCK_M": 128,
        "BLOCK_N": 128,
        "PARTS": 1,
        "SPAN": steps[0],
        "STEPS": steps[1],
        "EVEN_M": True,
        "EVEN_N": True,
        "EVEN_K": True,
        **changes,
    }
    types = {**POINTERS, "weight": "*i8" if bits == 8 else "*u8", **NUMBERS, **STEPS}
    types = {name: kind for name, kind in types.items() if name not in constants}
    if not constants["CODES"]:
        types |= {"residual": "*bf16", "out": "*bf16"}
    return code(
        json.dumps({"kernel": "linear", "types": types, "constants": constants, "capability": capability, **options})
    )


@pytest.mark.parametrize(
    ("bits", "capability", "loop", "rest", "multiply"),
    [  # a step of the loop takes 128 inputs, of int8 weights before Hopper 64
        (8, 90, 90, 1500, "IGMMA"),
        (4, 90, 130, 1500, "IGMMA"),
        (8, 80, 95, 1500, "IMMA"),
        (4, 80, 195, 1500, "IMMA"),
        (8, 89, 95, 1500, "IMMA"),
        (4, 86, 195, 1500, "IMMA"),
    ],
)
def test_the_inner_loop_multiplies_and_hardly_anything_else(
    bits: int, capability: int, loop: int, rest: int, multiply: str
) -> None:
    found = linear(bits, capability)
    assert found["loop"] <= loop
    assert found["total"] - found["loop"] <= rest, "what comes after the sums: GELU and codes of 64 results a thread"
    assert found["loop_counts"][multiply] == {("IGMMA"): 4, ("IMMA"): 32 if bits == 8 else 64}[multiply]
    assert not found["spilled"]
    assert found["registers"] <= 255
    assert found["shared"] <= {80: 163, 90: 227}.get(capability, 99) * 1024


@pytest.mark.parametrize("capability", [80, 90])
def test_tiles_of_96_columns(capability: int) -> None:
    found = linear(8, capability, BLOCK_N=32, PARTS=3, SPAN=32, STEPS=1 if capability == 90 else 3, num_warps=4)
    assert found["loop_counts"]["IGMMA" if capability == 90 else "IMMA"] > 0
    assert not found["spilled"]


@pytest.mark.parametrize("bits", [2, 3])
def test_fewer_bits_and_a_residual(bits: int) -> None:
    found = linear(bits, 86, ACTIVATION="none", RESIDUAL=True, CODES=False, EVEN_M=False, EVEN_N=False, EVEN_K=False)
    assert found["loop_counts"]["IMMA"] > 0
    assert not found["spilled"]
    assert found["shared"] <= 99 * 1024


@pytest.mark.parametrize("bits", [4, 8])
def test_one_row(bits: int) -> None:
    """Triton takes the number 1 for a constant."""
    found = linear(bits, 80, rows=1, BLOCK_M=16, BLOCK_N=64, EVEN_M=False, EVEN_N=False, EVEN_K=False, num_warps=4)
    assert not found["spilled"]


def attention(capability: int, width: int, *, split: bool, int8: bool = False) -> dict[str, Any]:
    """Memory attention; parts give floats, the whole gives codes."""
    from qsam2_ao.native.triton_attention import _blocks

    queries, keys, warps = _blocks(capability == 90, int8, width)
    pointers = {**dict.fromkeys("qk", "*i8" if int8 else "*bf16"), "v": "*bf16", **_types("q_scales k_scales", "*fp32")}
    pointers |= {"out": "*fp32" if split else "*i8", "logs": "*fp32"}
    strides = {f"{name}_{of}": "i32" for name in "qkv" for of in ("batch", "head", "token")}
    numbers = dict.fromkeys(("queries", "keys", "length"), "i32") | {"scale": "fp32"} | FLOATS
    constants = {"heads": 1, "C": 256, "D": width, "QUERIES": queries, "KEYS": keys, "BLOCK_C": 256, "BLOCK_D": width}
    constants |= {"SPLIT": split, "CODES": not split, "INT8": int8}
    shared = {"kernel": "attention", "types": {**pointers, **numbers, **strides}, "constants": constants}
    found = code(json.dumps({**shared, "capability": capability, "num_warps": warps, "num_stages": 2}))
    assert not found["spilled"]
    assert found["shared"] <= {80: 163, 90: 227}.get(capability, 99) * 1024
    return found


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("capability", [80, 86, 89, 90])
def test_attention_to_memories_keeps_its_numbers_in_registers(capability: int, split: bool) -> None:
    found = attention(capability, 64, split=split)
    assert found["loop_counts"]["HGMMA" if capability == 90 else "HMMA"] > 0


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("capability", [80, 86, 89, 90])
def test_scores_in_int8_are_of_int8_tensor_cores(capability: int, width: int) -> None:
    """Of memory attention, and of its attention to the frame itself, whose values are as wide as its keys."""
    counts = attention(capability, width, split=width == 64, int8=True)["loop_counts"]
    scores, weighed = ("IGMMA", "HGMMA") if capability == 90 else ("IMMA", "HMMA")
    assert counts[scores] > 0
    assert counts[weighed] > 0, "weights and values stay bfloat16"


@pytest.mark.parametrize("kernel", ["lsc forward", "lsc backward"])
def test_training_kernels_are_short(kernel: str) -> None:
    pointers = {"x": "*bf16", "scale": "*fp32", "zero_point": "*fp32"}
    pointers |= {"out": "*bf16"} if kernel == "lsc forward" else {"grad": "*bf16", "to_x": "*bf16", "sums": "*fp32"}
    numbers = dict.fromkeys(("size", "row"), "i32")
    floats = dict.fromkeys(("low", "high") if kernel == "lsc forward" else ("low", "high", "below", "above"), "fp32")
    found = code(
        json.dumps(
            {
                "kernel": kernel,
                "types": {**pointers, **numbers, **floats},
                # Triton takes the number 1 for a constant.
                "constants": {"count": 1, "groups": 1, "ONE": True, "ACROSS": 1, "ALONG": 2048},
                "capability": 80,
                "num_warps": 4,
            }
        )
    )
    assert not found["spilled"]
    assert found["total"] < 1500, "16 elements a thread"


RANGE = """base_mean base_std base_low base_high earlier_mean earlier_var earlier_low earlier_high pool mean_out std_out
    low_out high_out alpha_bar log_alpha scale_out zero_point_out per_alpha_out factor_out"""


@pytest.mark.parametrize(
    ("kind", "capability"), [("activation", 80), ("activation of one part", 90), ("channels", 90), ("groups", 80)]
)
def test_the_kernels_of_training_ranges_compile(kind: str, capability: int) -> None:
    """Triton takes the number 1 for a constant, which its interpreter does not."""
    one = kind.startswith("activation")
    ones = {"count": 1} if one else {}
    ones |= {} if kind == "groups" else {"groups": 1}
    sizes = {name: "i32" for name in ("count", "size", "groups", "row") if name not in ones}
    along = 256 if kind == "groups" else 2048
    tile = {"ACROSS": 2048 // along, "ALONG": along}
    statistics = {
        "kernel": "lsc statistics",
        "types": {"x": "*bf16", "parts": "*fp32", **sizes},
        "constants": {**ones, **tile},
    }
    parts = {"number": 1} if kind == "activation of one part" else {}
    block = 1 if parts else 64
    flags = dict.fromkeys(("RUNNING", "JOINS"), one) | {"LEARNS": True, "CENTRED": not one, "WITH_ZERO": one}
    ranged = {
        "kernel": "lsc range",
        "types": {
            **_types(f"parts {RANGE}", "*fp32"),
            "at_limit_out": "*i1",
            **sizes,
            **({} if parts else {"number": "i32"}),
            **_types("share step factor lowest highest double_step min_scale", "fp32"),
        },
        "constants": {**ones, **parts, **flags, "ACROSS": 1 if one else 16, "BLOCK": block, "ALONG": along},
    }
    for kernel in (statistics, ranged):
        found = code(json.dumps({**kernel, "capability": capability, "num_warps": 4}))
        assert not found["spilled"]
        assert found["total"] < 1500


OTHERS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "quantize": (
        {"x": "*bf16", "out": "*i8", "count": "i32", **_types("scale zero_point high", "fp32")},
        {"BLOCK": 2048},
    ),
    "layer norm": (
        {
            "x": "*bf16",
            "out": "*i8",
            **_types("weight bias", "*fp32"),
            **_types("rows n", "i32"),
            **_types("eps steps zero_point high", "fp32"),
        },
        {"CODES": True, "ROWS": 16, "BLOCK": 128},
    ),
    "patches": (
        {
            **_types("x out", "*i8"),
            **_types("count down across height width x_image x_row x_column sh sw ph pw fill", "i32"),
        },
        {"x_channel": 1, "CHANNELS": 3, "KH": 7, "KW": 7, "LENGTH": 148, "ROWS": 16, "BLOCK": 256},
    ),
    "window attention": (
        {
            **_types("qkv pad", "*bf16"),
            "out": "*i8",
            **_types("height width across windows", "i32"),
            "scale": "fp32",
            **FLOATS,
        },
        {"CODES": True, "HEADS": 1, "C": 96, "WINDOW": 8, "STRIDE": 1, "QUERIES": 64, "KEYS": 64, "BLOCK_C": 128},
    ),
    "code rows": (
        {
            "x": "*bf16",
            "codes": "*i8",
            **_types("mean scales", "*fp32"),
            **_types("tokens x_batch x_head x_token", "i32"),
            "factor": "fp32",
        },
        {"heads": 1, "LESS_MEAN": True, "C": 256, "ROWS": 16, "BLOCK": 256},
    ),
    "merge": (
        {**_types("sums logs", "*fp32"), "out": "*i8", **_types("rows parts", "i32"), **FLOATS},
        {"CODES": True, "D": 64, "ROWS": 32, "BLOCK": 64},
    ),
}


@pytest.mark.parametrize(
    ("kernel", "capability"),
    [*((kernel, 86) for kernel in OTHERS), *(("window attention", capability) for capability in (80, 89, 90))],
)
def test_the_other_kernels_compile(kernel: str, capability: int) -> None:
    types, constants = OTHERS[kernel]
    shared = {"kernel": kernel, "types": types, "constants": constants, "capability": capability, "num_warps": 4}
    found = code(json.dumps(shared))
    assert not found["spilled"]
    assert found["shared"] <= 99 * 1024
