from __future__ import annotations

from pathlib import Path

import pytest
import sam2
import torch
from data_parallel import run_ranks
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from official_training import EMBEDDED, own_logging, write_dataset
from omegaconf import OmegaConf
from training.optimizer import construct_optimizer

from qsam2_ao.errors import CheckpointError, QConfigError
from qsam2_ao.recipe import fake_quantizers
from qsam2_ao.stage import stage_of
from qsam2_ao.training.official import quantized_sam2
from qsam2_ao.training.official.compose import compose_training
from qsam2_ao.training.official.launch import train
from qsam2_ao.training.official.options import Options
from qsam2_ao.training.official.record import load_calibrated, record_of, save_calibrated

NO_FILES = [f"trainer.model.qsam2.{key}=null" for key in ("checkpoint", "calibration", "folder")]
GIVEN = {"preset": "w4a8", "checkpoint": None, "calibration": None}


@pytest.mark.parametrize("size", ["t", "b+"])
@pytest.mark.parametrize("preset", ["w4a8", "w2a8"])
def test_shipped_configs(size, preset):
    config = compose_training(f"configs/qsam2/sam2.1_hiera_{size}_{preset}.yaml", ["dataset.img_folder=videos"])
    options = Options.read(OmegaConf.to_container(config.trainer.model.qsam2, resolve=True))
    assert options.preset == preset
    assert options.calibration == "videos"
    stock = OmegaConf.load(Path(sam2.__path__[0]) / f"configs/sam2.1/sam2.1_hiera_{size}.yaml").model.image_encoder
    trunk = {**config.trainer.model.image_encoder.trunk}
    assert trunk.pop("drop_path_rate") == 0.1  # of training
    assert trunk == stock.trunk
    assert config.trainer.model.image_encoder.neck == stock.neck
    assert config.launcher.experiment_log_dir.endswith(f"sam2_logs/sam2.1_hiera_{size}_{preset}")


def test_a_config_of_ones_own_on_top_of_sam2s(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# @package _global_\ndefaults:\n  - /configs/sam2.1_training/sam2.1_hiera_b+_MOSE_finetune\n  - _self_\n"
        "trainer:\n  model:\n    _target_: qsam2_ao.training.official.quantized_sam2\n"
        "    qsam2: {preset: w8a8, checkpoint: null, calibration: null}\n"
        "  checkpoint: {model_weight_initializer: null}\n"
    )
    before = GlobalHydra.instance().hydra
    config = compose_training(str(path), ["scratch.num_epochs=3"])
    assert config.trainer["_target_"] == "qsam2_ao.training.official.QATTrainer"
    assert config.trainer.max_epochs == 3
    assert GlobalHydra.instance().hydra is before


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("configs/sam2.1_training/sam2.1_hiera_b+_MOSE_finetune.yaml", [], "does not quantize: trainer.model._target_"),
        ("configs/sam2.1/sam2.1_hiera_t.yaml", [], "has no trainer.model"),
        ("configs/qsam2/nothing.yaml", [], "there is no config configs/qsam2/nothing.yaml: give"),
        (EMBEDDED, ["scratch.epochs=1"], "scratch.epochs"),
        (EMBEDDED, ["trainer.checkpoint.model_weight_initializer={_target_: f}"], "set it to null"),
    ],
)
def test_configs_that_cannot_be_used(name, override, message):
    with pytest.raises(QConfigError, match=message):
        compose_training(name, override)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"preset": "w4a8", "calibration": None}, r"qsam2.checkpoint is missing.*model_weight_initializer comes too"),
        ({"preset": "w4a8", "checkpoint": None}, r"qsam2.calibration is missing"),
        ({**GIVEN, "imgs": 3}, r"qsam2.imgs is no setting"),
        ({**GIVEN, "images": 0}, r"images must be a positive number"),
        ({**GIVEN, "rounding": "gtpq"}, r"qsam2.rounding: unknown rounding 'gtpq'"),
        ({**GIVEN, "vrc": -1}, r"qsam2.vrc must be \"auto\", a number that is not negative, or null"),
        ({**GIVEN, "regions": {"image_encoder": "w4a8"}}, "either preset"),
        ({**GIVEN, "folder": 3}, r"folder must be a path"),
        ({**GIVEN, "preset": "w5a5"}, r"qsam2.preset: unknown preset 'w5a5'"),
        ({**GIVEN, "preset": None, "regions": {}, "first_last_bits": 8}, "first_last_bits belongs"),
        (None, "must be a block"),
    ],
)
def test_blocks_that_cannot_be_used(block, message):
    with pytest.raises(QConfigError, match=message):
        Options.read(block)


def test_recipes_by_region():
    options = Options.read({"regions": {"image_encoder": "w4a8"}, "checkpoint": None, "calibration": None})
    assert options.qconfig == {"image_encoder": "w4a8"}
    assert options.recipe != Options.read(GIVEN).recipe


def test_more_processes_than_gpus_are_refused_first(tmp_path):
    config = compose_training(EMBEDDED, ["trainer.accelerator=cuda", f"launcher.experiment_log_dir={tmp_path}"])
    config.launcher.gpus_per_node = torch.cuda.device_count() + 1
    with pytest.raises(QConfigError, match="GPU"):
        train(config, EMBEDDED)
    config.launcher.num_nodes = 2
    with pytest.raises(QConfigError, match="num_nodes is 2"):
        train(config, EMBEDDED)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_rank_without_a_gpu_says_so(tmp_path, monkeypatch):
    for key, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(key, str(value))
    overrides = [*write_dataset(tmp_path / "data"), "trainer.accelerator=cuda"]
    with pytest.raises(QConfigError, match="there is no GPU here"):
        train(compose_training(EMBEDDED, [*overrides, f"launcher.experiment_log_dir={tmp_path}"]), EMBEDDED)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.img_folder=null", r"img_folder is None, which is no folder: set dataset.img_folder"),
        ("dataset.gt_folder=nowhere", r"gt_folder is 'nowhere', which is no folder"),
        ("dataset.file_list_txt=none.txt", r"file_list_txt is 'none.txt', which is no file"),
        ("submitit.use_cluster=true", "there is no sbatch here"),
    ],
)
def test_what_is_not_there_is_said_first(tmp_path, monkeypatch, override, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = compose_training(EMBEDDED, [*write_dataset(tmp_path / "data"), override])
    config.launcher.experiment_log_dir = str(tmp_path / "run")
    with pytest.raises(QConfigError, match=message):
        train(config, EMBEDDED)
    assert not (tmp_path / "run").exists()


def test_the_model_knows_of_the_checkpoint_that_the_trainer_goes_on_from():
    overrides = ["trainer.checkpoint.resume_from=other.pt", "trainer.model.qsam2.resume_from=null"]
    assert compose_training(EMBEDDED, overrides).trainer.model.qsam2.resume_from == "other.pt"


def test_a_name_without_its_ending_has_a_folder_of_its_own():
    config = compose_training("configs/qsam2/sam2.1_hiera_t_w4a8", ["dataset.img_folder=videos"])
    assert config.launcher.experiment_log_dir.endswith("sam2_logs/sam2.1_hiera_t_w4a8")


def test_autocast_on_the_cpu_is_refused(tmp_path):
    data = write_dataset(tmp_path / "data")
    overrides = [*data, "trainer.optim.amp.enabled=true", f"launcher.experiment_log_dir={tmp_path}", *NO_FILES]
    with pytest.raises(QConfigError, match=r"amp.enabled is true on the CPU"):
        train(compose_training(EMBEDDED, overrides), EMBEDDED)


def test_clipping_ranges_have_a_group_of_their_own():
    config = compose_training(EMBEDDED, [*NO_FILES, "scratch.range_lr=0.5"])
    model = instantiate(config.trainer.model, _convert_="all")
    ranges = {id(parameter): name for name, parameter in model.named_parameters() if name.endswith("log_alpha")}
    assert len(ranges) > 100
    optim = config.trainer.optim
    groups = construct_optimizer(
        model, optim.optimizer, optim.options, optim.param_group_modifiers
    ).optimizer.param_groups
    for group in groups:
        inside = {id(parameter) in ranges for parameter in group["params"]}
        assert len(inside) == 1
        if inside == {True}:
            assert group["weight_decay"] == 0
            assert group["lr"] == 0.5
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    first, last = (rate[id(model.image_encoder.trunk.blocks[i].attn.qkv.weight)] for i in (0, -1))
    assert first == pytest.approx(last * 0.9 ** (len(model.image_encoder.trunk.blocks) - 1))


def test_a_calibrated_model_of_other_settings_is_refused(tmp_path):
    save_calibrated(tmp_path, {"a": torch.ones(1)}, {"images": 3}, {"images": 3, "vrc": "auto"})
    state, info = load_calibrated(tmp_path, {"images": 3, "vrc": "auto"})
    assert (state, info) == ({"a": torch.ones(1)}, {"images": 3})
    with pytest.raises(CheckpointError, match="images 3, not 4"):
        load_calibrated(tmp_path, {"images": 4, "vrc": "auto"})
    torch.save({"model": {}}, tmp_path / "checkpoint.pt")
    assert record_of(tmp_path / "checkpoint.pt") == {"images": 3}
    (tmp_path / "qsam2_calibrated.pt").unlink()
    with pytest.raises(CheckpointError, match="no record of its quantization"):
        record_of(tmp_path / "checkpoint.pt")


def run(overrides: list[str]) -> None:
    with own_logging():
        train(compose_training(EMBEDDED, overrides), EMBEDDED)


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_a_resumed_training_is_that_without_an_interruption(tmp_path):
    small = ["trainer.model.num_correction_pt_per_frame=1", "trainer.model.qsam2.images=1"]
    common = [*write_dataset(tmp_path / "data"), *small]
    run([*common, f"launcher.experiment_log_dir={tmp_path}/whole"])
    again = [*common, f"launcher.experiment_log_dir={tmp_path}/stopped"]
    with pytest.raises(KeyboardInterrupt):
        run([*again, "trainer._target_=official_training.Stopped"])
    stopped = torch.load(tmp_path / "stopped/checkpoints/checkpoint.pt", weights_only=True)
    assert stopped["epoch"] == 1
    for image in (tmp_path / "data/JPEGImages").rglob("*.jpg"):  # which a second calibration would see
        image.touch()
    (tmp_path / "stopped/checkpoints/qsam2_calibrated.pt").unlink()  # the checkpoint is enough
    run(again)
    assert not (tmp_path / "stopped/checkpoints/qsam2_calibrated.pt").exists()  # nothing was calibrated again
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints/checkpoint.pt", weights_only=True) for name in ("whole", "stopped")
    )
    assert whole["epoch"] == resumed["epoch"] == 2
    assert whole["qsam2"]["info"] == resumed["qsam2"]["info"]
    assert whole["qsam2"]["info"]["images"] == 1
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    moved = [name for name, value in stopped["model"].items() if not torch.equal(value, whole["model"][name])]
    assert any(name.endswith("log_alpha") for name in moved)
    for key, value in whole["optimizer"]["state"].items():
        assert all(torch.equal(value[part], resumed["optimizer"]["state"][key][part]) for part in value), key
    with pytest.raises(CheckpointError, match="was trained with"):
        run([*again, "trainer.model.qsam2.preset=w2a8"])


def calibrate(rank: int) -> dict[str, torch.Tensor]:
    """Rank 1 has other weights and no images: it can only have what rank 0 computed."""
    torch.manual_seed(rank)
    folder = "images" if rank == 0 else "nowhere"
    settings = {"checkpoint": "null", "folder": "null", "calibration": folder, "images": 1, "vrc": 0.01}
    config = compose_training(EMBEDDED, [f"trainer.model.qsam2.{key}={value}" for key, value in settings.items()])
    model = instantiate(config.trainer.model, _convert_="all")
    assert stage_of(model)["images"] == 1
    return model.state_dict()


@pytest.mark.slow
def test_ranks_hold_what_the_first_calibrated(tmp_path, monkeypatch):
    write_dataset(tmp_path)
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    first, second = run_ranks(calibrate, tmp_path)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert any("log_alpha" in name for name in first)


def test_the_factory_by_itself(tmp_path):
    arguments = {key: value for key, value in built_parts().items() if key != "qsam2"}
    with pytest.raises(QConfigError, match="checkpoint is missing"):
        quantized_sam2(qsam2={"preset": "w4a8", "calibration": None}, **arguments)
    model = quantized_sam2(qsam2={**GIVEN, "folder": str(tmp_path)}, **arguments)
    assert stage_of(model).name == "prepared"
    assert any(True for _ in fake_quantizers(model))
    assert (tmp_path / "qsam2_calibrated.pt").exists()
    again = quantized_sam2(qsam2={**GIVEN, "folder": str(tmp_path)}, **built_parts())
    found = again.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, found[name]), name
    with pytest.raises(CheckpointError, match="was calibrated with model "):
        quantized_sam2(qsam2={**GIVEN, "folder": str(tmp_path)}, **{**built_parts(), "image_size": 128})
    (tmp_path / "qsam2_calibrated.pt").write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match="delete it to calibrate again"):
        quantized_sam2(qsam2={**GIVEN, "folder": str(tmp_path)}, **built_parts())


def built_parts() -> dict:
    config = compose_training(EMBEDDED, NO_FILES).trainer.model
    container = OmegaConf.to_container(config, resolve=True)
    return {
        key: instantiate(value) if isinstance(value, dict) and "_target_" in value else value
        for key, value in container.items()
        if key not in ("_target_", "qsam2")
    }


def test_sam2s_own_launcher_finds_the_configs():
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("sam2", version_base="1.2"):
            assert compose("configs/qsam2/sam2.1_hiera_b+_w4a8.yaml").trainer.model.qsam2.preset == "w4a8"
    finally:
        GlobalHydra.instance().hydra = before
