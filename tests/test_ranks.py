"""Which rank this is, and what the first one does for all of them."""

from __future__ import annotations

import pytest
import torch
from data_parallel import run_ranks
from torch import nn

from qsam2_ao.errors import QSAM2Error
from qsam2_ao.quantizers.statistics import world_size
from qsam2_ao.ranks import Place, bare, from_first_rank, joined, mean_over_ranks, place_from, rank


def test_which_process_this_is():
    torchrun = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
    assert place_from(torchrun) == Place(3, 1, 4, "host", 29500)
    srun = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8"}
    nodes = {"SLURM_STEP_NODELIST": "gpu[07-08],big1", "SLURM_JOB_ID": "123456"}
    assert place_from({**srun, **nodes}) == Place(5, 1, 8, "gpu07", 33456)
    assert place_from({**srun, **nodes, "MASTER_ADDR": "a", "MASTER_PORT": "1"}) == Place(5, 1, 8, "a", 1)
    batch_script = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}
    assert place_from(batch_script) is None
    with pytest.raises(QSAM2Error, match="MASTER_ADDR, MASTER_PORT is not set"):
        place_from({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    with pytest.raises(QSAM2Error, match="no number"):
        place_from({**torchrun, "RANK": "first"})


def test_alone_nothing_is_exchanged():
    with joined(Place.alone(), "cpu") as device:
        assert (device, world_size(), rank()) == ("cpu", 1, 0)
    assert from_first_rank(lambda: [1], "count") == [1]
    assert mean_over_ranks(torch.tensor(3.0)) == 3
    layer = nn.Linear(1, 1)
    assert bare(layer) is layer


def test_one_gpu_for_all_is_refused():
    with (
        pytest.raises(QSAM2Error, match="cuda:1 is one GPU for 2 processes"),
        joined(Place(0, 0, 2, "localhost", 1), "cuda:1"),
    ):
        pass


def test_a_rank_without_a_gpu_is_told_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(QSAM2Error, match="cuda:2' cannot be used"), joined(Place(2, 2, 4, "localhost", 1), "cuda"):
        pass


def exchange(number):
    found = {"value": torch.tensor(from_first_rank(lambda: 7 + rank() + world_size(), "count"))}
    found["mean"] = mean_over_ranks(torch.tensor(float(number)))

    def fail():
        raise ValueError("no images")

    try:
        from_first_rank(fail, "calibrate the model")
    except QSAM2Error as error:
        found["failed"] = str(error)
    except ValueError as error:
        found["failed"] = f"itself: {error}"
    return found


@pytest.mark.slow
def test_the_first_rank_computes_and_all_hear_of_its_failure(tmp_path):
    first, second = run_ranks(exchange, tmp_path)
    assert first["value"] == second["value"] == 8  # alone where it computes
    assert first["mean"] == second["mean"] == 0.5
    assert first["failed"] == "itself: no images"
    assert second["failed"] == "rank 0 could not calibrate the model: ValueError: no images"
