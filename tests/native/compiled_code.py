"""Compile a Triton kernel for a GPU that need not be there, and count its instructions.

A program of its own, as tests run Triton in its interpreter: ``python compiled_code.py '{"kernel": ..., ...}'`` prints
``{"total", "loop", "loop_counts", "registers", "spilled"}``: instructions in all and in the largest loop, the loop's by
name, registers of a thread, and whether some went to memory.
"""

from __future__ import annotations

import collections
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qsam2_ao.native import triton_attention, triton_kernels, triton_linear
from qsam2_ao.quantizers import lsc_range_triton, lsc_triton

BIN = Path(triton.backends.nvidia.__file__).with_name("bin")
_KERNELS = {
    "linear": triton_linear._linear,
    "attention": triton_attention._attention_of_a_part,
    "code rows": triton_attention._code_rows,
    "merge": triton_attention._merge,
    "quantize": triton_kernels._quantize,
    "layer norm": triton_kernels._layer_norm,
    "patches": triton_kernels._patches,
    "window attention": triton_kernels._window_attention,
    "lsc forward": lsc_triton._forward,
    "lsc backward": lsc_triton._backward,
    "lsc statistics": lsc_range_triton._statistics,
    "lsc range": lsc_range_triton._range,
}
_DIVISIBLE = re.compile(r"(rows|n|k|stride|length|row|size|.*_(token|batch))$")


def count(
    kernel: str, types: dict[str, str], constants: dict[str, Any], capability: int, **options: int
) -> dict[str, Any]:
    """The counts of a kernel whose pointers and sizes are multiples of 16."""
    function = _KERNELS[kernel]
    names = function.arg_names
    source = ASTSource(
        fn=function,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if types.get(name, "").startswith("*") or (name in types and _DIVISIBLE.match(name))
        },
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        code = _run("nvdisasm", "-c", file.name)
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
    instructions, loops = _parse(code)
    loop = max(loops, key=len, default=[])
    return {
        "total": len(instructions),
        "loop": len(loop),
        "loop_counts": collections.Counter(loop),
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),  # type: ignore[index]
        "spilled": "LDL" in instructions or "STL" in instructions,
        "shared": compiled.metadata.shared,
    }


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([BIN / tool, *arguments], check=True, capture_output=True, text=True).stdout


def _parse(code: str) -> tuple[list[str], list[list[str]]]:
    """Names of all instructions, and of those between each jump back and where it goes."""
    names: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\w+)(.*?);", line):
            names.append(found[1])
            jump = re.search(r"\((\.L_x_\d+)\)", found[2])
            if found[1] == "BRA" and jump and jump[1] in labels:
                loops.append(names[labels[jump[1]] :])
    while names and names[-1] in ("NOP", "BRA"):
        names.pop()
    return names, loops


if __name__ == "__main__":
    print(json.dumps(count(**json.loads(sys.argv[1]))))
