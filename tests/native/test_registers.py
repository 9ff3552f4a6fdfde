"""The sums of the products' loops stay in registers: a compiler may keep them in memory, at up to twice the time."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from qsam2_ao.native import build, compiler

GCC = shutil.which("g++")
_PRODUCT = re.compile(r"vpdpbusd|vfmadd|vdpbf16ps|vpmaddubsw|vpmaddwd")
_ON_STACK = re.compile(r"vmov\w+\s+%[xyz]mm\d+,.*\(%r[sb]p")


def inner_loops(disassembled: str) -> list[list[str]]:
    """The instructions of each loop that has no jump inside."""
    found = re.findall(r"^\s*([0-9a-f]+):\s+(\S.*)$", disassembled, re.MULTILINE)
    numbers = {address: number for number, (address, _) in enumerate(found)}
    loops = []
    for number, (_, instruction) in enumerate(found):
        jump = re.match(r"j\w+\s+([0-9a-f]+)", instruction)
        first = numbers.get(jump[1], number) if jump else number
        body = [text for _, text in found[first:number]]
        if first < number and not any(text.startswith("j") for text in body):
            loops.append(body)
    return loops


def products(loop: list[str]) -> int:
    return sum(bool(_PRODUCT.match(text.removeprefix("{vex} "))) for text in loop)


@pytest.mark.slow
@pytest.mark.skipif(build.kind() not in compiler.X86, reason="These kernels are for x86-64.")
@pytest.mark.skipif(GCC is None or shutil.which("objdump") is None, reason="needs g++ and objdump")
@pytest.mark.parametrize("kind", ["avx2", "avx_vnni", "avx512_bf16"])
def test_loops_of_products_keep_their_sums_in_registers(kind: str, tmp_path: Path) -> None:
    of_products = []
    for source in ("attention", "gemm"):
        to = tmp_path / f"{source}.o"
        headers = ("-isystem", str(Path(torch.__file__).parent / "include"))
        command = (str(GCC), *compiler.flags(kind), "-w", *headers, "-c", str(compiler.SOURCES / f"{source}.cpp"))
        subprocess.run([*command, "-o", str(to)], check=True)
        text = subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", str(to)], capture_output=True, text=True, check=True
        )
        loops = inner_loops(text.stdout)
        of_products += [
            loop for loop in loops if products(loop) >= 12 and sum("broadcast" in line for line in loop) >= 4
        ]
    assert len(of_products) >= 4, "of float and of codes, by either file"
    # Some tiles for AVX2 alone, which takes several instructions for a product, have a few too many operands.
    stored = [loop for loop in of_products if 4 * sum(map(bool, map(_ON_STACK.match, loop))) > products(loop)]
    assert not stored, "\n".join(stored[0])
