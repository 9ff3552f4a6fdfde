from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor, nn

from qsam2_ao import prepare_qsam2
from qsam2_ao.errors import CheckpointError, DataError
from qsam2_ao.models.embedded import build_embedded, load_embedded
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage
from qsam2_ao.training.loop import train
from qsam2_ao.training.qat import _best_of, train_qat
from qsam2_ao.training.selection import Selection

Pair = tuple[Tensor, Tensor]
HELD_OUT: list[Pair] = [(torch.ones(1, 2), torch.zeros(1, 1)), (torch.ones(1, 2), torch.full((1, 1), 2.0))]


def error(output: Tensor, batch: Pair) -> Tensor:
    return (output - batch[1]).square().mean()


def run(model: nn.Module, batch: Pair) -> Tensor:
    output: Tensor = model(batch[0])
    return output


def line(value: float) -> nn.Linear:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(value)
        model.bias.zero_()
    return model


def select(model: nn.Module, target: float, path: Path | None = None, steps: int = 8) -> Selection[Pair, Tensor]:
    """Train towards a target; the held-out one is 1 on average."""
    selection = Selection(model, HELD_OUT, error, run, every=2, steps=steps, path=path)
    data = [(torch.ones(4, 2), torch.full((4, 1), target))] * steps
    train(
        model,
        lambda first: data[first:],
        error,
        steps=steps,
        lr=0.1,
        ema=0.5,
        forward=run,
        on_step=selection,
        progress=False,
    )
    return selection


def test_the_start_is_kept_where_training_leads_away() -> None:
    model = line(0.5)  # answers 1, which is best on the held-out batches
    start = copy.deepcopy(model.state_dict())
    best = select(model, target=9.0).best
    assert best.step == 0
    assert best.gain == 0
    assert sorted(best.judged) == [0, 2, 4, 6, 8]
    assert min(best.judged, key=lambda step: best.judged[step]) == 0
    assert all(torch.equal(best.state[name], value) for name, value in start.items())
    assert "start is kept" in str(best)


def test_the_average_of_least_held_out_loss_is_kept() -> None:
    model = line(-2.0)
    best = select(model, target=1.0).best
    assert best.step == min(best.judged, key=lambda step: best.judged[step]) > 0
    assert 0 < best.gain <= 1
    kept = line(0.0)
    kept.load_state_dict(best.state)
    expected = sum(error(run(kept, batch), batch).item() for batch in HELD_OUT) / 2
    assert best.judged[best.step] == pytest.approx(expected, rel=1e-6)
    assert f"kept: step {best.step}" in str(best)


class Two(nn.Module):
    """Two parts that learn apart, one of them inside of a third, which has a weight of its own that nothing trains."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.outer = line(-2.0), nn.Module()
        self.outer.bad, self.outer.own = line(0.5), nn.Parameter(torch.ones(1))


def of_parts(model: nn.Module, batch: Pair) -> dict[str, Tensor]:
    assert isinstance(model, Two)
    if not model.good.training and float(batch[1]) == 2.0:  # a part need not run on every held-out batch
        return {"outer.bad": error(model.outer.bad(batch[0]), batch)}
    parts = {"good": model.good, "outer.bad": model.outer.bad}
    return {name: error(part(batch[0]), batch) for name, part in parts.items()}


def total(output: dict[str, Tensor], batch: Pair) -> Tensor:
    return torch.stack(list(output.values())).sum()


def test_every_part_keeps_its_own_best(tmp_path: Path) -> None:
    model, path = Two(), tmp_path / "best.pt"
    start = copy.deepcopy(model.state_dict())
    batches = [(torch.ones(1, 2), torch.full((1, 1), target)) for target in (0.0, 2.0)]

    def selection() -> Selection[Pair, dict[str, Tensor]]:
        return Selection(model, batches, total, of_parts, parts=dict, every=2, steps=8, path=path)

    def forward(model: nn.Module, batch: Pair) -> dict[str, Tensor]:
        assert isinstance(model, Two)
        # What the second part is to learn leads it away from what the held-out batches ask.
        return {
            "good": error(model.good(batch[0]), batch),
            "outer.bad": (model.outer.bad(batch[0]) - 9).square().mean(),
        }

    chosen = selection()
    data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 8
    options = {"forward": forward, "on_step": chosen, "progress": False}
    train(model, lambda first: data[first:], total, steps=8, lr=0.1, ema=0.5, **options)
    best = chosen.best
    assert best.steps == {"good": best.step, "outer.bad": 0}
    assert best.step > 0
    for name in start:
        assert torch.equal(best.state[name], start[name]) == (not name.startswith("good")), name
    assert best.loss == pytest.approx(best.losses["good"][best.step] + best.losses["outer.bad"][0])
    assert best.judged[best.step] > best.loss
    assert 0 < best.gain < 1
    assert str(best).endswith(f"kept: the start of outer.bad; step {best.step} of good")
    again = selection().best
    assert (again.steps, again.losses) == (best.steps, best.losses)
    assert all(torch.equal(again.state[name], value) for name, value in best.state.items())


def test_an_interrupted_selection_goes_on_with_its_best(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    first = select(line(-2.0), target=1.0, path=path).best
    again = Selection(line(-2.0), HELD_OUT, error, run, every=2, steps=8, path=path).best
    assert (again.step, again.judged) == (first.step, first.judged)
    assert all(torch.equal(again.state[name], value) for name, value in first.state.items())


@pytest.mark.parametrize("damage", ["cut", "foreign", "other"])
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "best.pt"
    model: nn.Module = line(1.0)
    if damage == "other":
        select(nn.Linear(2, 3), target=1.0, path=path)
    else:
        select(model, target=1.0, path=path)
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-100])
        else:
            torch.save({"something": 1}, path)
    with pytest.raises(CheckpointError, match=r"best\.pt cannot be continued from"):
        Selection(model, HELD_OUT, error, run, every=2, steps=8, path=path)


def test_the_best_of_parts_is_no_best_of_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    select(line(-2.0), target=1.0, path=path, steps=2)
    by_parts = lambda output: {"other": output.square().mean()}  # noqa: E731
    selection = Selection(line(-2.0), HELD_OUT, error, run, parts=by_parts, every=1, steps=8, path=path)
    with pytest.raises(CheckpointError, match=r"judged by other parts.*delete it"):
        train(
            line(-2.0), lambda first: HELD_OUT, error, steps=1, ema=0.5, forward=run, on_step=selection, progress=False
        )


def test_what_is_missing_is_said() -> None:
    with pytest.raises(DataError, match="held-out"):
        Selection(line(1.0), [], error, run, every=1, steps=1)
    selection = Selection(line(1.0), HELD_OUT, error, run, every=1, steps=1)
    with pytest.raises(DataError, match="ema"):
        train(line(1.0), lambda first: HELD_OUT, error, steps=1, forward=run, on_step=selection, progress=False)


@pytest.mark.slow
def test_a_prepared_model_ends_no_worse_than_it_began(tmp_path: Path) -> None:
    kinds = ((BatchKind(1, 2, 1), 0.5), (BatchKind(1, 2, 1, images=True), 0.5))
    held_out = list(ProceduralBatches((Stage(0, kinds),), seed=9).stream(2)(0))
    prepared = prepare_qsam2(build_embedded(SAM2VideoPredictor), "w4a8", progress=False)
    batches = ProceduralBatches((Stage(0, kinds),), seed=1).stream(3)
    train_qat(prepared, steps=1, batches=batches, progress=False)  # starts the ranges of the inputs
    states = []
    for name in ("once", "again"):
        model = copy.deepcopy(prepared)
        before = copy.deepcopy(model.state_dict())
        # A rate that ruins any model.
        result = train_qat(
            model,
            steps=3,
            lr=1.0,
            batches=batches,
            held_out=held_out,
            judge_every=1,
            checkpoint=tmp_path / f"{name}.pt",
            progress=False,
        )
        assert result.selected is not None
        assert result.selected.step == 0
        assert sorted(result.selected.judged) == [0, 1, 2, 3]
        assert not model.training
        states.append(model.state_dict())
        assert all(torch.equal(value, before[key]) for key, value in states[-1].items())
        assert (tmp_path / f"{name}.best.pt").exists()


def test_two_trainings_have_two_files_of_their_best(tmp_path: Path) -> None:
    names = ("training.pt", "lr0.001", "lr0.0005", "w4a8.seed0", "w4a8.seed1")
    assert len({_best_of(tmp_path / name) for name in names}) == len(names)
    assert _best_of(tmp_path / "training.pt") == tmp_path / "training.best.pt"


def test_what_was_best_in_an_earlier_training_is_forgotten_with_its_checkpoint(tmp_path: Path) -> None:
    model = load_embedded(SAM2VideoPredictor)
    batches = list(ProceduralBatches((Stage(0, ((BatchKind(1, 1, 1, images=True), 1.0),)),)).stream(3)(0))
    path = tmp_path / "training.pt"

    resumed_at = []

    def train(seed: int) -> dict[int, float]:
        own = copy.deepcopy(model)
        options = {"held_out": batches[2:], "judge_every": 1, "checkpoint": path, "progress": False}
        options["on_resume"] = lambda result: resumed_at.append(result.step)
        selected = train_qat(
            own, steps=2, lr=1e-5, seed=seed, batches=lambda first: batches[first:2], **options
        ).selected
        assert selected is not None
        return selected.judged

    first = train(0)
    assert train(0) == first, "it went on"
    assert resumed_at == [2]
    path.unlink()
    assert train(1) != first
