"""Several processes that train one model: real ones, connected over gloo, against a single one."""

import copy
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_fit import DATA_CONFIG, Memory
from together import run_together
from torch import Tensor, nn
from trained_runs import disturb

from arelu_tl.activation.arelu import AReLU, named_arelus
from arelu_tl.data.folder import scan_folder
from arelu_tl.data.loader import eval_view, make_eval_batches, make_train_batches, train_view
from arelu_tl.errors import ConfigError, Interrupted, NonFiniteError, PeerError
from arelu_tl.records.settings import AugmentSettings, OptimizerSettings
from arelu_tl.surgery.convert import convert
from arelu_tl.training.distributed import ALONE, World, join_world
from arelu_tl.training.evaluate import evaluate
from arelu_tl.training.fit import FitSettings, fit
from arelu_tl.training.interruption import StopRequest
from arelu_tl.training.optimisation import make_optimizer
from arelu_tl.training.step import Step, StepSettings

CPU = torch.device("cpu")


class Net(nn.Module):
    """One site, and a parameter that only a batch with a picture of class 2 meets, and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 8, 3), AReLU(), nn.Linear(8, 3)
        self.seldom, self.never = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.head(self.act(self.conv(pictures)).mean((2, 3)))
        return logits * self.seldom if (pictures > 5).any() else logits


def make_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "plain":
        return Net()
    model: nn.Module = timm.create_model("test_resnet", num_classes=3)
    convert(model, example_input=torch.zeros(1, 3, 32, 32))
    # A new net's blocks add nothing, and have no gradients.
    return disturb(model)


def make_step(model: nn.Module, world: World = ALONE, **settings: Any) -> Step:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step = Step(model, optimizer, StepSettings(**settings), CPU, world=world)
    step.train_mode()
    return step


def make_batches(count: int) -> list[tuple[Tensor, Tensor]]:
    stream = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 32, 32, generator=stream), torch.arange(8) % 3) for _ in range(count)
    ]


def slice_of(batch: tuple[Tensor, Tensor], world: World) -> tuple[Tensor, Tensor]:
    pictures, labels = (t.chunk(world.size)[world.rank] for t in batch)
    return pictures, labels


def take_step(
    world: World, name: str, batches: int, settings: dict[str, Any]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(what was told, gradients, weights and statistics after the step)."""
    model = make_net(name)
    step = make_step(model, world, **settings)
    told = step.gradients([slice_of(batch, world) for batch in make_batches(batches)], 0)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    gradients = {n: g.clone() for n, g in gradients.items()}
    step.update()
    return told, gradients, dict(model.state_dict())


STEPS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "plain": ("plain", 1, {}),
    "frozen statistics": ("test_resnet", 1, {"frozen_statistics": True}),
    "parts": (
        "test_resnet",
        2,
        {"frozen_statistics": True, "micro_batch": 3, "clip_grad": 0.5, "channels_last": True},
    ),
    "statistics": ("test_resnet", 1, {}),
}


def take_steps(world: World) -> dict[str, Any]:
    return {case: take_step(world, *arguments) for case, arguments in STEPS.items()}


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    return run_together(take_steps)


@pytest.mark.parametrize("case", [case for case in STEPS if case != "statistics"])
def test_gradients_are_those_of_one_process_alpha_and_beta_included(
    case: str, steps: list[dict[str, Any]]
) -> None:
    told, gradients, weights = take_step(ALONE, *STEPS[case])
    ours, others = (each[case] for each in steps)
    sites = len(list(named_arelus(make_net(STEPS[case][0]))))
    assert sum(n.endswith((".alpha", ".beta")) for n in gradients) == 2 * sites > 0
    for (loss, correct), (our_loss, our_correct) in zip(told, ours[0], strict=True):
        assert our_loss == pytest.approx(loss, rel=1e-5)
        assert our_correct == correct
    assert ours[1].keys() == gradients.keys()
    for key, gradient in gradients.items():
        # At its limits alpha has none.
        assert gradient.abs().max() > 0 or key.endswith(".alpha")
        torch.testing.assert_close(ours[1][key], gradient, rtol=1e-4, atol=1e-5)
    for key, tensor in weights.items():
        assert torch.equal(ours[2][key], others[2][key])
        torch.testing.assert_close(ours[2][key], tensor, rtol=1e-4, atol=1e-5)


def test_batchnorm_learns_the_mean_of_what_the_processes_see(steps: list[dict[str, Any]]) -> None:
    ours, others = (each["statistics"] for each in steps)
    seen = []
    for rank in (0, 1):
        model = make_net("test_resnet")
        make_step(model).gradients([slice_of(make_batches(1)[0], World(rank=rank, size=2))], 0)
        seen.append(model.state_dict())
    for key in (k for k in seen[0] if "running" in k):
        assert torch.equal(ours[2][key], others[2][key])
        torch.testing.assert_close(ours[2][key], (seen[0][key] + seen[1][key]) / 2)
        assert not torch.equal(seen[0][key], seen[1][key])


def seldom_met(world: World) -> dict[str, Tensor | None]:
    model = make_net("plain")
    pictures, labels = slice_of(make_batches(1)[0], world)
    pictures[0] = 6.0 if world.rank == 1 else 0.0
    make_step(model, world).gradients([(pictures, labels)], 0)
    return {name: p.grad for name, p in model.named_parameters()}


def test_a_parameter_that_only_one_process_meets_learns_in_all_and_one_that_none_meets_in_none() -> (
    None
):
    ours, others = run_together(seldom_met)
    assert ours["never"] is None
    assert others["never"] is None
    assert ours["seldom"] != 0
    assert torch.equal(ours["seldom"], others["seldom"])


class _OutOfMemoryOnce(nn.Module):
    def __init__(self, net: nn.Module, at_most: int | None) -> None:
        super().__init__()
        self.net, self.at_most = net, at_most

    def forward(self, pictures: Tensor) -> Tensor:
        if self.at_most is not None and len(pictures) > self.at_most:
            raise torch.OutOfMemoryError
        logits: Tensor = self.net(pictures)
        return logits


def step_short_of_memory(world: World) -> tuple[int | None, dict[str, Any]]:
    model = _OutOfMemoryOnce(make_net("plain"), 2 if world.rank == 1 else None)
    step = make_step(model, world)
    step.gradients([slice_of(make_batches(1)[0], world)], 0)
    return step.micro_batch, {
        n: p.grad for n, p in model.net.named_parameters() if p.grad is not None
    }


def test_one_process_that_runs_out_of_memory_takes_its_slice_in_parts_while_the_other_waits() -> (
    None
):
    (ours, gradients), (theirs, same) = run_together(step_short_of_memory)
    assert (ours, theirs) == (None, 2)
    whole = take_step(ALONE, "plain", 1, {})[1]
    for key, gradient in whole.items():
        assert torch.equal(gradients[key], same[key])
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-6)


def train(
    world: World,
    root: Path,
    *,
    epochs: int = 2,
    stop_at: int | None = None,
    resume: tuple[dict[str, Any], dict[str, Any]] | None = None,
    poisoned: bool = False,
    killed: bool = False,
) -> tuple[list[Any], list[Any], dict[str, Any], Any]:
    """(rows, checkpoints, weights, result or error) of a run with dropout and every BatchNorm in eval mode."""
    folder = scan_folder(root)
    share = (world.rank, world.size)
    augment = train_view(DATA_CONFIG, AugmentSettings(scale=(0.5, 1.0)))
    pictures, held_out = folder.splits["train"], folder.splits["val"]
    batches = make_train_batches(folder.root, pictures, augment, batch_size=6, seed=3, share=share)
    size = 6 // world.size
    val = make_eval_batches(
        folder.root, held_out, eval_view(DATA_CONFIG), batch_size=size, share=share
    )
    torch.manual_seed(0)
    model = timm.create_model(
        "test_resnet", num_classes=3, drop_rate=0.0 if resume is None and stop_at is None else 0.3
    )
    convert(model, example_input=torch.zeros(1, 3, 32, 32))
    if resume is not None:
        model.load_state_dict(resume[0])
    optimizer = make_optimizer(model, ["fc"], OptimizerSettings(opt="adamw", lr=1e-3))
    stop = StopRequest()
    # The other processes are not asked to stop.
    journal = Memory(stop, stop_at if world.rank == world.size - 1 else None)
    last = world.rank == world.size - 1
    if last and poisoned:
        model.conv1.register_forward_hook(
            lambda conv, _, y: y * float("nan") if conv.training else y
        )
    if last and killed:
        journal.progress = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    settings = FitSettings(
        epochs=epochs, frozen_statistics=True, log_every=2, ema_decay=0.9, seed=1
    )
    state = resume[1] if resume is not None else None
    result: Any
    try:
        result = fit(
            model,
            batches,
            val,
            optimizer,
            None,
            settings,
            device=CPU,
            journal=journal,
            stop=stop,
            resume=state,
            world=world,
        )
        result = result.state.digests, result.final
    except (Interrupted, NonFiniteError, PeerError) as error:
        result = error
    return journal.rows, journal.saved, dict(model.state_dict()), result


@pytest.fixture(scope="module")
def root(make_folder: Any) -> Path:
    # 15 validation pictures in batches of 3: the first process has one batch more.
    path: Path = make_folder(val=5)
    return path


def test_a_whole_run_agrees_with_one_process(root: Path) -> None:
    rows, _, weights, (digests, final) = train(ALONE, root)
    ours, others = run_together(train, root)
    assert ours[0] == others[0]
    assert ours[3][0] == digests == others[3][0]
    assert len(ours[0]) == len(rows)
    for row, ours_row in zip(rows, ours[0], strict=True):
        assert {k: row[k] for k in ("step", "epoch", "split", "lr")} == {
            k: ours_row[k] for k in ("step", "epoch", "split", "lr")
        }
        assert ours_row["loss"] == pytest.approx(row["loss"], rel=1e-3)
        assert ours_row["top1"] == row["top1"]
        assert ours_row.get("correct") == row.get("correct")
    assert torch.equal(ours[3][1].predicted, final.predicted)
    torch.testing.assert_close(ours[3][1].probability, final.probability, rtol=1e-3, atol=1e-4)
    for key, tensor in weights.items():
        assert torch.equal(ours[2][key], others[2][key])
        torch.testing.assert_close(ours[2][key], tensor, rtol=1e-2, atol=2e-3)


def interrupt_and_resume(world: World, root: Path) -> tuple[Any, Any, int]:
    """(uninterrupted weights, those of a run that was stopped and resumed, the step at which it was)."""
    through = train(world, root, stop_at=10**9)
    _, saved, _, stopped = train(world, root, stop_at=3)
    assert isinstance(stopped, Interrupted)
    step, weights, state = saved[-1]
    assert state["processes"] == world.size
    after = train(world, root, stop_at=10**9, resume=copy.deepcopy((weights, state)))
    return through[2], after[2], step


def test_a_signal_to_one_process_stops_all_after_the_same_step_and_they_resume_to_the_bit(
    root: Path,
) -> None:
    for told in run_together(interrupt_and_resume, root):
        whole, resumed, step = told
        assert step == 3
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_number_that_is_none_in_one_process_ends_all_before_the_step(root: Path) -> None:
    for rows, _, _, error in run_together(train_poisoned, root):
        assert isinstance(error, NonFiniteError)
        assert "step 1" in str(error)
        assert [row["step"] for row in rows] == [0]


def train_poisoned(world: World, root: Path) -> Any:
    return train(world, root, poisoned=True)


def train_killed(world: World, root: Path) -> Any:
    return train(world, root, killed=True)


def test_one_process_that_is_killed_ends_the_other_at_once(root: Path) -> None:
    began = time.monotonic()
    left, killed = run_together(train_killed, root)
    assert killed is None
    assert isinstance(left[3], PeerError)
    assert "another process" in str(left[3])
    assert time.monotonic() - began < 30


def dealt_out(world: World) -> Any:
    """Evaluate five batches of unequal size, of which three processes have 2, 2 and 1."""
    model = nn.Flatten()
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(2))
    whole = [(x, torch.arange(len(x)) % 3) for x in logits.split(2)]
    return evaluate(model, whole[world.rank :: world.size], CPU, world=world), evaluate(
        model, whole, CPU
    )


def test_evaluation_counts_every_picture_once_and_in_order() -> None:
    for ours, alone in run_together(dealt_out, size=3):
        assert ours.loss == alone.loss
        for name in ("predicted", "correct", "probability"):
            assert torch.equal(getattr(ours, name), getattr(alone, name))


def exchange(world: World) -> Any:
    tensors = [
        torch.full((2,), float(world.rank)),
        torch.full((3, 2), world.rank, dtype=torch.float64),
    ]
    world.average(tensors)
    weights = torch.full((2,), float(world.rank + 5))
    world.share_weights([weights])
    led = world.lead(lambda: {"rank": world.rank})
    return world.highest(world.rank), world.gather(world.rank), led, tensors, weights


def test_exchanges() -> None:
    for highest, gathered, led, tensors, weights in run_together(exchange, size=3):
        assert (highest, gathered, led) == (2, [0, 1, 2], {"rank": 0})
        assert all(torch.equal(t, torch.ones_like(t)) for t in tensors)
        assert torch.equal(weights, torch.full((2,), 5.0))


def test_alone_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with join_world() as world:
        assert world == ALONE
        assert (world.highest(3), world.gather("a"), world.lead(lambda: 1)) == (3, ["a"], 1)
        assert not torch.distributed.is_initialized()


def test_processes_that_are_named_wrongly_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "two",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="RANK=two"), join_world():
        pass
