"""What "auto" takes, by real measurements on whatever processor this is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import logits

from qsam2_ao import load_qsam2, save_qsam2
from qsam2_ao.deploy.choice import choose, decoder_in_float, encoder_times, product_times
from qsam2_ao.deploy.onednn.processor import why_no_onednn
from qsam2_ao.errors import CheckpointError
from qsam2_ao.native import fast_float, why_no_kernels, why_unfit_for_kernels
from qsam2_ao.stage import stage_of

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(why_no_kernels() is not None, reason="the int8 kernels do not run here")
needs_bfloat16 = pytest.mark.skipif(fast_float() != torch.bfloat16, reason="this CPU has no fast bfloat16")
needs_onednn = pytest.mark.skipif(why_no_onednn(CPU) is not None, reason=str(why_no_onednn(CPU)))


def write(path: Path, **milliseconds: float) -> None:
    """Put other times into a file, as another processor would have written."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "milliseconds": milliseconds}))


@needs_kernels
@needs_bfloat16
def test_the_kernels_are_timed_against_bfloat16_once(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    assert choose(CPU, timed=False, folder=tmp_path) == ("int8", None, None)
    assert not list(tmp_path.iterdir()), "nothing was timed"
    choice = choose(CPU, timed=True, folder=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    (path,) = tmp_path.iterdir()
    times = product_times(tmp_path)
    assert times == json.loads(path.read_text())["milliseconds"], "kept"
    assert (choice.target == "int8") == (times["int8"] <= times["bfloat16"])
    write(path, int8=3.0, bfloat16=2.0)
    choice = choose(CPU, timed=True, folder=tmp_path)
    assert choice.target == "dequantized"
    assert "two layers took 2 ms, and 3 ms on the int8 kernels" in str(choice.reason)
    assert choice.warning is None, "nothing is missing"


@needs_onednn
def test_the_encoder_is_timed_on_onednn_and_in_float(
    packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")  # the kernels keep away
    model: Any = load_qsam2(packed_file)
    choice = choose(CPU, model, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    times = json.loads(path.read_text())["milliseconds"]
    assert set(times) == {"onednn", "dequantized"}
    assert choice.target == min(times, key=times.__getitem__)
    assert choice.warning is None
    for slower, faster in (("onednn", "dequantized"), ("dequantized", "onednn")):
        write(path, **{slower: 3.0, faster: 2.0})
        choice = choose(CPU, model, folder=tmp_path)
        assert choice.target == faster
        assert why_unfit_for_kernels() in str(choice.reason)
    model.image_size = 1024  # what is slower on small images need not be on large ones
    write(path, onednn=3.0, dequantized=2.0)
    assert choose(CPU, model, folder=tmp_path).target == "onednn"
    path.unlink()
    assert choose(CPU, model, folder=tmp_path).target == "onednn"
    assert not path.exists()  # they are not timed
    assert choose(CPU, folder=tmp_path).target == "onednn"
    records = [record for record in stage_of(model).layers if record.part == "image_encoder"]
    assert set(encoder_times(model.image_encoder, records, 96, "packed", tmp_path)) == {"onednn", "packed"}


@needs_onednn
@torch.inference_mode()
def test_each_part_of_the_decoder_takes_what_is_faster(
    packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")  # the kernels keep away
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    packed: Any = load_qsam2(packed_file)
    records = [record for record in stage_of(packed).layers if record.region == "mask_decoder"]
    parts = {record.part for record in records}
    assert len(parts) > 1
    slower = decoder_in_float(packed)
    (path,) = (tmp_path / "qsam2_ao").glob("times-*.json")
    times = json.loads(path.read_text())["milliseconds"]
    assert set(slower) == {part for part in parts if times[f"{part} onednn"] > times[f"{part} dequantized"]}
    one = "sam_mask_decoder.transformer"
    write(path, **{f"{part} {name}": 3.0 - (name == "onednn") for part in parts for name in ("onednn", "dequantized")})
    assert decoder_in_float(packed) == {}
    write(path, **{**json.loads(path.read_text())["milliseconds"], f"{one} onednn": 4.0})
    assert list(decoder_in_float(packed)) == [one]
    choose(CPU, packed)
    (other,) = {*(tmp_path / "qsam2_ao").glob("times-*.json")} - {path}
    write(other, onednn=2.0, dequantized=3.0)
    model = load_qsam2(packed_file, target="auto")
    for record in stage_of(model).layers:
        target, why = stage_of(model).targets[record.name]
        assert target == ("dequantized" if record.part == one else "onednn")
        assert ("it took 4 ms, and 3 ms in float" in str(why)) == (record.part == one)
    np.testing.assert_allclose(logits(model), logits(packed), atol=0.05 * float(np.abs(logits(packed)).max()))


def test_without_int8_products_small_models_are_dequantized(packed_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    model = load_qsam2(packed_file)
    assert choose(CPU, model).target == "dequantized"
    assert choose(CPU).target == "packed"
    assert "computes in float, which is slower: The kernels" in str(choose(CPU, model).warning)
    monkeypatch.setattr("qsam2_ao.deploy.choice.SMALL_BYTES", 2**20)
    assert choose(CPU, model).target == "packed"


BOTH = """
import sys, torch
from qsam2_ao import load_qsam2
x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    outs = [load_qsam2(sys.argv[1], target=target).forward_image(x) for target in ("packed", "dequantized")]
print(all(torch.equal(a, b) for a, b in zip(outs[0]["backbone_fpn"], outs[1]["backbone_fpn"])))
"""


def test_dequantized_weights_compute_what_packed_ones_do(packed_file: Path) -> None:
    """In a process without the kernels, to the bit."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BOTH, str(packed_file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@torch.inference_mode()
def test_where_bfloat16_is_emulated_dequantized_weights_keep_to_float32(
    packed_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")  # the kernels keep away
    monkeypatch.setattr("qsam2_ao.deploy.targets.fast_float", lambda device: torch.float32)
    packed, model = load_qsam2(packed_file), load_qsam2(packed_file, target="dequantized")
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    exact = packed.forward_image(x)["vision_features"]
    assert torch.equal(model.forward_image(x)["vision_features"], exact)
    with torch.autocast("cpu", torch.bfloat16):
        ours = model.image_encoder(x)["vision_features"]
    assert torch.equal(ours, exact.bfloat16()), "rounded once, at the end"


@needs_kernels
@needs_bfloat16
@torch.inference_mode()
def test_dequantized_weights_between_the_kernels(packed_file: Path, tmp_path: Path) -> None:
    packed, model = load_qsam2(packed_file), load_qsam2(packed_file, target="dequantized")
    assert {target for target, _ in stage_of(model).targets.values()} == {"dequantized"}
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    exact, ours = packed.forward_image(x)["vision_features"], model.forward_image(x)["vision_features"]
    with torch.autocast("cpu", torch.bfloat16):
        theirs = packed.forward_image(x)["vision_features"]
    assert (ours - exact).norm() < 1.5 * (theirs - exact).norm()
    with pytest.raises(CheckpointError, match='load the file with target="packed"'):
        save_qsam2(model, tmp_path / "again.safetensors")
