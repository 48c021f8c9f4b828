"""The loop: reproducible, resumable anywhere, stopped by signals and by numbers that are none."""

import copy
import functools
import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from arelu_tl.activation.arelu import AReLU, named_arelus
from arelu_tl.data.folder import scan_folder
from arelu_tl.data.loader import (
    Batches,
    eval_view,
    make_eval_batches,
    make_train_batches,
    train_view,
)
from arelu_tl.errors import Interrupted, NonFiniteError
from arelu_tl.records.settings import AugmentSettings, OptimizerSettings
from arelu_tl.surgery.convert import convert
from arelu_tl.training.evaluate import Evaluation, evaluate
from arelu_tl.training.fit import FitResult, FitSettings, fit
from arelu_tl.training.interruption import StopRequest
from arelu_tl.training.optimisation import freeze_backbone, make_optimizer, make_schedule

CPU = torch.device("cpu")
DATA_CONFIG = {
    "input_size": [3, 32, 32],
    "interpolation": "bilinear",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "crop_pct": 1.0,
}


class Memory:
    """A journal that keeps everything; ``stop_at`` asks for an end after that step."""

    def __init__(self, stop: StopRequest | None = None, stop_at: int | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []
        self.bests: list[tuple[int, float]] = []
        self.saved: list[tuple[int, dict[str, Tensor], dict[str, Any]]] = []
        self.notes: list[str] = []
        self.stop, self.stop_at = stop, stop_at

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append({k: v for k, v in row.items() if k != "seconds"})

    def progress(self, step: int, loss: float, top1: float, images_per_second: float) -> None:
        if self.stop is not None and step == self.stop_at:
            self.stop.signal_number = 2

    def best(self, weights: dict[str, Tensor], evaluation: Evaluation, step: int) -> None:
        self.bests.append((step, evaluation.top1))

    def epoch_end(self, row: dict[str, Any]) -> None:
        self.epochs.append(row)

    def checkpoint(self, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.saved.append((step, {k: v.clone() for k, v in weights.items()}, _copy(state)))

    def note(self, text: str) -> None:
        self.notes.append(text)


def _copy(state: Any) -> Any:
    """As a checkpoint on disk would keep it: no memory shared with the running optimiser."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {k: _copy(v) for k, v in state.items()}
    if isinstance(state, list):
        return [_copy(v) for v in state]
    return state


@pytest.fixture(scope="module")
def batches(make_folder: Any) -> tuple[Batches, Batches]:
    folder = scan_folder(make_folder())
    train = make_train_batches(
        folder.root,
        folder.splits["train"],
        train_view(DATA_CONFIG, AugmentSettings(scale=(0.5, 1.0))),
        batch_size=5,
        seed=3,
    )
    val = make_eval_batches(folder.root, folder.splits["val"], eval_view(DATA_CONFIG), batch_size=5)
    return train, val


@functools.cache
def prototype() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_resnet", num_classes=3, drop_rate=0.3)
    convert(model, example_input=torch.zeros(1, 3, 32, 32))
    return model


def make_model() -> nn.Module:
    """The same one every time, with torch's generator in the same state."""
    model = copy.deepcopy(prototype())
    torch.manual_seed(0)
    return model


def run(
    batches: tuple[Batches, Batches],
    settings: FitSettings,
    *,
    journal: Memory | None = None,
    resume_from: tuple[int, dict[str, Tensor], dict[str, Any]] | None = None,
    lr: float = 1e-3,
    stop: StopRequest | None = None,
    steps_per_epoch: int = 4,
) -> tuple[nn.Module, Memory, FitResult]:
    model = make_model()
    journal = journal or Memory()
    optimizer = make_optimizer(
        model, ["fc"], OptimizerSettings(opt="adamw", lr=lr, arelu_lr=10 * lr, weight_decay=0.05)
    )
    schedule = make_schedule(
        optimizer,
        sched="cosine",
        epochs=settings.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=0.5,
    )
    resume = None
    if resume_from is not None:
        model.load_state_dict(resume_from[1])
        resume = _copy(resume_from[2])
    result = fit(
        model,
        *batches,
        optimizer,
        schedule,
        settings,
        device=CPU,
        journal=journal,
        stop=stop or StopRequest(),
        resume=resume,
    )
    return model, journal, result


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


def test_evaluates_at_step_0_every_epoch_and_every_so_many_steps(
    batches: tuple[Batches, Batches],
) -> None:
    _, journal, result = run(batches, FitSettings(epochs=2, eval_every=3))
    val = [(row["step"], row["epoch"]) for row in journal.rows if row["split"] == "val"]
    assert val == [(0, 0), (3, 0), (4, 1), (6, 1), (8, 2)]
    assert [row["step"] for row in journal.epochs] == [4, 8]
    assert result.state.step == 8
    assert all(
        set(row["sites"]) == {name for name, _ in named_arelus(make_model())}
        for row in journal.rows
        if "sites" in row
    )


def test_same_seed_gives_the_same_rows_and_weights_to_the_bit(
    batches: tuple[Batches, Batches],
) -> None:
    first, second = (run(batches, FitSettings(epochs=2, seed=5)) for _ in range(2))
    assert first[1].rows == second[1].rows
    assert_same_weights(first[0], second[0])


def test_another_seed_gives_other_dropout(batches: tuple[Batches, Batches]) -> None:
    first, second = (run(batches, FitSettings(epochs=1, seed=seed)) for seed in (1, 2))
    assert first[1].rows != second[1].rows


@pytest.fixture(
    scope="module",
    params=[
        FitSettings(epochs=2, eval_every=3, log_every=2),
        FitSettings(epochs=2, ema_decay=0.9, grad_accum_steps=1),
    ],
    ids=["plain", "ema"],
)
def uninterrupted(
    request: pytest.FixtureRequest, batches: tuple[Batches, Batches]
) -> tuple[FitSettings, nn.Module, Memory]:
    """What every interrupted training is held to; nothing trains this model further."""
    model, journal, _ = run(batches, request.param)
    return request.param, model, journal


@pytest.mark.parametrize("stop_at", range(1, 9))
def test_interrupted_anywhere_and_resumed_ends_bit_equal(
    batches: tuple[Batches, Batches],
    uninterrupted: tuple[FitSettings, nn.Module, Memory],
    stop_at: int,
) -> None:
    settings, whole_model, whole = uninterrupted
    stop = StopRequest()
    broken = Memory(stop, stop_at)
    with pytest.raises(Interrupted) as error:
        run(batches, settings, journal=broken, stop=stop)
    assert error.value.exit_code == 130
    assert broken.saved[-1][0] == stop_at
    model, rest, _ = run(batches, settings, resume_from=broken.saved[-1])
    assert broken.rows + rest.rows == whole.rows
    assert broken.bests + rest.bests == whole.bests
    assert_same_weights(model, whole_model)


def test_leaving_out_a_part_of_the_saved_state_is_noticed(batches: tuple[Batches, Batches]) -> None:
    """A negative control: the resume test above would see it if the optimiser's state were lost."""
    settings = FitSettings(epochs=2)
    whole_model, _, _ = run(batches, settings)
    stop = StopRequest()
    broken = Memory(stop, 3)
    with pytest.raises(Interrupted):
        run(batches, settings, journal=broken, stop=stop)
    step, weights, state = broken.saved[-1]
    state["optimizer"]["state"] = {}
    model, _, _ = run(batches, settings, resume_from=(step, weights, state))
    assert any(
        not torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), whole_model.state_dict().values(), strict=True)
    )


def test_accumulating_batches_takes_fewer_steps_with_the_mean_gradient(
    batches: tuple[Batches, Batches],
) -> None:
    _, _, result = run(batches, FitSettings(epochs=1, grad_accum_steps=3), steps_per_epoch=2)
    assert result.state.step == 2  # four batches: three, then the one that is left
    assert result.state.images == 20


def test_alpha_is_projected_after_each_step(batches: tuple[Batches, Batches]) -> None:
    model, journal, _ = run(batches, FitSettings(epochs=2), lr=0.3)
    alphas = [m.alpha.item() for _, m in named_arelus(model)]
    assert all(0.01 - 1e-7 <= a <= 0.99 + 1e-7 for a in alphas)
    seen = [a for row in journal.rows for a, _ in row.get("sites", {}).values()]
    assert min(seen) >= 0.01 - 1e-7
    assert max(seen) <= 0.99 + 1e-7


def test_infinite_loss_ends_the_training_before_the_step(batches: tuple[Batches, Batches]) -> None:
    model = make_model()
    with torch.no_grad():
        model.get_submodule("fc").weight.fill_(math.inf)
    train, val = batches
    optimizer = make_optimizer(model, ["fc"], OptimizerSettings(opt="sgd", lr=0.1))
    with pytest.raises(NonFiniteError, match="`lr`"):
        fit(
            model, train, val, optimizer, None, FitSettings(epochs=1), device=CPU, journal=Memory(), stop=StopRequest()
        )  # fmt: skip


def test_patience_ends_an_arm_that_gets_no_better(batches: tuple[Batches, Batches]) -> None:
    _, _, result = run(batches, FitSettings(epochs=30, patience=2), lr=1e-9, steps_per_epoch=4)
    assert result.state.stopped_early
    assert (
        result.state.epoch == 3
    )  # the first epoch is the best so far, then two without a better one


def test_frozen_backbone_keeps_weights_and_batchnorm_but_learns_head_and_arelu(
    batches: tuple[Batches, Batches],
) -> None:
    model = make_model()
    freeze_backbone(model, ["fc"])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = make_optimizer(model, ["fc"], OptimizerSettings(opt="adamw", lr=1e-2))
    settings = FitSettings(epochs=1, frozen_statistics=True)
    fit(
        model, *batches, optimizer, None, settings, device=CPU, journal=Memory(), stop=StopRequest()
    )
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    arelu = {f"{name}.{p}" for name, _ in named_arelus(model) for p in ("alpha", "beta")}
    assert {"fc.weight", "fc.bias"} <= changed
    assert changed <= {"fc.weight", "fc.bias"} | arelu
    assert changed & arelu


def test_evaluation_counts_each_picture_once_and_keeps_modes(
    batches: tuple[Batches, Batches],
) -> None:
    model = make_model().train()
    frozen = model.get_submodule("bn1").eval()
    result = evaluate(model, batches[1].epoch(), CPU)
    assert len(result.predicted) == 12 == len(result.probability)
    labels = torch.tensor([s.label for s in batches[1].samples])
    assert result.top1 == pytest.approx((result.predicted == labels).float().mean().item())
    assert model.training
    assert not frozen.training


def test_the_logged_rate_is_the_backbones_or_the_heads(batches: tuple[Batches, Batches]) -> None:
    model = make_model()
    freeze_backbone(model, ["fc"])
    optimizer = make_optimizer(
        model, ["fc"], OptimizerSettings(opt="adamw", lr=1e-3, arelu_lr=1e-1)
    )
    journal = Memory()
    fit(
        model,
        *batches,
        optimizer,
        None,
        FitSettings(epochs=1),
        device=CPU,
        journal=journal,
        stop=StopRequest(),
    )
    assert {row["lr"] for row in journal.rows} == {1e-3}


def test_the_averaged_model_follows_from_the_start(batches: tuple[Batches, Batches]) -> None:
    """With a decay of 0.9999 and no warm-up it would still be the initial model after two epochs."""
    _, averaged, _ = run(batches, FitSettings(epochs=2, ema_decay=0.9999), lr=1e-2)
    losses = [row["loss"] for row in averaged.rows if row["split"] == "val"]
    assert abs(losses[-1] - losses[0]) > 1e-3
    sites = [row["sites"] for row in averaged.rows if "sites" in row]
    assert sites[-1] != sites[0]


def test_bfloat16_training_runs_and_keeps_parameters_in_float32(
    batches: tuple[Batches, Batches],
) -> None:
    model, journal, _ = run(batches, FitSettings(epochs=1, amp=torch.bfloat16))
    assert all(p.dtype is torch.float32 for p in model.parameters())
    assert all(math.isfinite(row["loss"]) for row in journal.rows)


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.act = AReLU()
        self.fc = nn.Linear(4, 2)


def test_groups_hold_every_parameter_once_with_their_rates_and_no_decay_on_vectors_and_arelu() -> (
    None
):
    model = Bare()
    optimizer = make_optimizer(
        model,
        ["fc"],
        OptimizerSettings(opt="adamw", lr=1e-4, head_lr=1e-3, arelu_lr=1e-2, weight_decay=0.05),
    )
    groups = {
        g["name"]: (g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups
    }
    assert groups == {
        "backbone": (1e-4, 0.05, 1),
        "backbone-no-decay": (1e-4, 0.0, 1),
        "head": (1e-3, 0.05, 1),
        "head-no-decay": (1e-3, 0.0, 1),
        "arelu": (1e-2, 0.0, 2),
    }


@pytest.mark.parametrize("sched", ["cosine", "tanh", "poly", "step", "none"])
def test_schedule_warms_up_from_0_and_scales_every_group(sched: str) -> None:
    model = Bare()
    optimizer = make_optimizer(model, ["fc"], OptimizerSettings(opt="sgd", lr=1e-2, head_lr=1e-1))
    schedule = make_schedule(optimizer, sched=sched, epochs=4, steps_per_epoch=5, warmup_epochs=1)
    assert schedule is not None
    rates = []
    for step in range(20):
        schedule.step(step)
        rates.append([g["lr"] for g in optimizer.param_groups])
    assert rates[0] == [0.0] * len(rates[0])
    peak = [max(r[i] for r in rates) for i in range(len(rates[0]))]
    assert peak == pytest.approx([g["initial_lr"] for g in optimizer.param_groups], rel=1e-6)
    if sched == "none":
        assert rates[-1] == pytest.approx(peak)
    else:
        assert rates[-1][0] < 0.5 * peak[0]


def test_no_schedule_and_no_warm_up_leave_the_rates_alone() -> None:
    assert (
        make_schedule(
            make_optimizer(Bare(), ["fc"], OptimizerSettings(opt="sgd", lr=1e-2)),
            sched="none",
            epochs=4,
            steps_per_epoch=5,
        )
        is None
    )


# Shorter trainings -----------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 4, 6])
def test_max_steps_ends_where_so_many_steps_are_done_and_an_epoch_cut_short_stays_open(
    batches: tuple[Batches, Batches], most: int
) -> None:
    whole, told, _ = run(batches, FitSettings(epochs=2))
    _, journal, result = run(batches, FitSettings(epochs=2, max_steps=most))
    assert (result.state.step, result.state.epoch) == (most, most // 4)
    assert len(journal.epochs) == most // 4
    assert journal.rows[-1]["split"] == "val"
    assert journal.rows[-1]["step"] == most
    # As if it had been interrupted there: with its state it goes on to the same end.
    resumed, _, end = run(batches, FitSettings(epochs=2), resume_from=journal.saved[-1])
    assert end.state.step == told.rows[-1]["step"]
    assert_same_weights(resumed, whole)


def test_without_validation_nothing_is_evaluated_and_the_training_is_the_same(
    batches: tuple[Batches, Batches],
) -> None:
    model, _, _ = run(batches, FitSettings(epochs=1))
    alone, journal, result = run((batches[0], None), FitSettings(epochs=1))
    assert result.final is None
    assert {row["split"] for row in journal.rows} == {"train"}
    assert "val_top1" not in journal.epochs[0]
    assert journal.bests == []
    assert_same_weights(alone, model)


def test_nobody_need_listen(batches: tuple[Batches, Batches]) -> None:
    model = make_model()
    optimizer = make_optimizer(model, ["fc"], OptimizerSettings(opt="sgd", lr=1e-3))
    result = fit(model, *batches, optimizer, None, FitSettings(epochs=1), device=CPU)
    assert result.final is not None
    assert result.state.step == 4


def test_where_max_steps_ends_it_nothing_is_evaluated_or_saved_twice(
    batches: tuple[Batches, Batches],
) -> None:
    settings = FitSettings(epochs=1, max_steps=2, eval_every=2, save_every_steps=2)
    _, journal, _ = run(batches, settings)
    assert [row["step"] for row in journal.rows if row["split"] == "val"] == [0, 2]
    assert [step for step, *_ in journal.saved] == [2]
