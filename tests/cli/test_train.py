"""``qsam2 train`` and ``qsam2 convert``: SAM2's trainer on a tiny dataset, and the file that comes out."""

from __future__ import annotations

import pytest
from official_training import EMBEDDED, own_logging, write_dataset

from qsam2_ao.checkpoint import load_qsam2, read_header


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_train_and_convert(run, tmp_path):
    folder = f"launcher.experiment_log_dir={tmp_path}/run"
    settings = [*write_dataset(tmp_path / "data"), folder, "scratch.num_epochs=1"]
    with own_logging():
        result = run("train", EMBEDDED, *settings, "trainer.model.num_correction_pt_per_frame=1")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run/config_resolved.yaml").exists()
    output = tmp_path / "w4a8.safetensors"
    checkpoint = tmp_path / "run/checkpoints/checkpoint.pt"
    result = run("convert", EMBEDDED, "--checkpoint", checkpoint, "-o", output)
    assert result.exit_code == 0, result.output
    info = read_header(output).info
    assert info["images"] == 4
    assert info["vrc"]
    assert info["recipe"]["preset"] == "w4a8"
    assert info["training"] == {"epochs": 1, "steps": 1}
    packed = load_qsam2(output)
    assert type(packed).__name__ == "SAM2VideoPredictor"
    assert packed.sam_mask_decoder.dynamic_multimask_via_stability
    assert packed.binarize_mask_from_pts_for_mem_enc
    result = run("convert", EMBEDDED, "--checkpoint", checkpoint, "-o", output, "trainer.model.qsam2.preset=w2a8")
    assert result.exit_code == 2
    assert "was trained with" in result.stderr
    result = run("convert", EMBEDDED, "--checkpoint", checkpoint.with_name("qsam2_calibrated.pt"), "-o", output)
    assert result.exit_code == 2
    assert "is the calibrated model from before the training" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "configs/qsam2/nothing.yaml"], "there is no config configs/qsam2/nothing.yaml: give"),
        (["train", EMBEDDED, "trainer.accelerator=tpu", "launcher.num_nodes=2"], "num_nodes is 2"),
        (["convert", EMBEDDED, "--checkpoint", "absent.pt", "-o", "out.pt"], "a .safetensors file is written"),
        (["convert", EMBEDDED, "--checkpoint", "absent.pt", "-o", "out.safetensors"], "absent.pt: no such file"),
    ],
)
def test_what_is_refused(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
