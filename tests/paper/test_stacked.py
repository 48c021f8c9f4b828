"""The stack of small nets: its convolution, its optimisers and its training against torch's own, one net at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from kernels import needs_kernel
from torch import Tensor, nn

from arelu_tl.activation.catalogue import CATALOGUE
from arelu_tl.paper.digits import Pictures, batch_order
from arelu_tl.paper.nets import convolution
from arelu_tl.paper.nets.activations import StackedActivation
from arelu_tl.paper.nets.fit import evaluate_stack, make_noise, train_stack
from arelu_tl.paper.nets.net import BLOCKS, Stack, initial_weights
from arelu_tl.paper.nets.optimisers import OPTIMISERS

CPU = torch.device("cpu")
SHAPES = [(1, 10, 5, 28), (3, 10, 5, 28), (10, 20, 5, 12), (20, 40, 3, 4)]
kernel = needs_kernel(convolution.kernel_state())


def make_net(activation: str, weights: dict[str, Tensor]) -> nn.Sequential:
    """The paper's net as torch builds it, with the weights of ``initial_weights``."""
    layers: list[nn.Module] = []
    before = weights["conv1.weight"].shape[1]
    for after, kernel in BLOCKS:
        layers += [nn.Conv2d(before, after, kernel), nn.MaxPool2d(2), CATALOGUE[activation].make()]
        before = after
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, 10))
    with torch.no_grad():
        for number in range(len(BLOCKS)):
            net[3 * number].weight.copy_(weights[f"conv{number + 1}.weight"])
            net[3 * number].bias.copy_(weights[f"conv{number + 1}.bias"])
        net[-1].weight.copy_(weights["fc.weight"])
        net[-1].bias.copy_(weights["fc.bias"])
    return net


def weights_in_order(weights: dict[str, Tensor], net: nn.Sequential) -> list[Tensor]:
    """A stack's ``weights_of`` in the order of ``net.parameters()``."""
    names: list[str] = []
    for number in range(1, len(BLOCKS) + 1):
        own = [name for name, _ in net[3 * number - 1].named_parameters()]
        names += [
            f"conv{number}.weight",
            f"conv{number}.bias",
            *(f"act{number}.{name}" for name in own),
        ]
    return [weights[name] for name in [*names, "fc.weight", "fc.bias"]]


def make_pictures(count: int, channels: int = 1, seed: int = 0) -> Pictures:
    """Ten kinds of stripes in noise, that can be learnt in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    waves = torch.sin(torch.arange(28) * (0.15 + 0.12 * labels[:, None])) * 0.5 + 0.5
    pixels = waves[:, :, None, None].expand(-1, -1, 28, channels) * 200 + 55 * torch.rand(
        (count, 28, 28, channels), generator=generator
    )
    return Pictures(pixels.to(torch.uint8), labels)


def whole_numbers(*shape: int, seed: int) -> Tensor:
    """Small ones, whose products add up without rounding: every order of adding is right, and many maxima are equal."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize(
    "convolve", [pytest.param(convolution.conv_pool, marks=kernel), convolution.conv_pool_portable]
)
def test_convolution_equals_torchs_with_all_its_gradients(
    convolve: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, ...], shared: bool
) -> None:
    channels, outputs, kernel, side = shape
    nets, batch = 4, 3
    x = whole_numbers(2 if shared else nets, batch, side, side, channels, seed=1).requires_grad_(
        not shared
    )
    weight = whole_numbers(nets, kernel, kernel, channels, outputs, seed=2).requires_grad_()
    bias = whole_numbers(nets, outputs, seed=3).requires_grad_()
    y = convolve(x, weight, bias)
    grad = whole_numbers(*y.shape, seed=4)
    ours = torch.autograd.grad(y, [weight, bias] + [x] * (not shared), grad)
    for net in range(nets):
        image = x.detach()[net // (nets // len(x))].permute(0, 3, 1, 2).requires_grad_()
        w, b = (
            weight.detach()[net].permute(3, 2, 0, 1).requires_grad_(),
            bias.detach()[net].requires_grad_(),
        )
        expected = F.max_pool2d(F.conv2d(image, w, b), 2)
        assert torch.equal(y[net], expected.permute(0, 2, 3, 1))
        theirs = torch.autograd.grad(expected, [w, b, image], grad[net].permute(0, 3, 1, 2))
        turned = [theirs[0].permute(2, 3, 1, 0), theirs[1], theirs[2].permute(0, 2, 3, 1)]
        for mine, other in zip(ours, turned, strict=False):
            assert torch.equal(mine[net], other)


@kernel
def test_a_number_that_is_none_comes_through_the_pooling() -> None:
    x, ones = torch.randn(1, 2, 28, 28, 1), torch.ones(10, 1, 5, 5)
    for place in ((9, 9), (0, 0), (27, 26), (13, 4)):
        broken = x.clone()
        broken[0, 0, place[0], place[1], 0] = torch.nan
        y = convolution.conv_pool(broken, torch.ones(1, 5, 5, 1, 10), torch.zeros(1, 10))
        expected = F.max_pool2d(F.conv2d(broken[0].permute(0, 3, 1, 2), ones), 2)
        assert expected.isnan().any()
        assert torch.equal(y[0].isnan(), expected.isnan().permute(0, 2, 3, 1))


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) - {"rrelu"}))
def test_a_stacked_activation_is_the_module_with_each_nets_parameters(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    stacked = StackedActivation(name, CPU)
    x = torch.randn((3, 2, 4, 4, 5), generator=generator) * 2
    moved = {
        key: torch.stack(
            [p + 0.05 * torch.randn(p.shape, generator=generator) for _ in range(3)]
        ).requires_grad_()
        for key, p in stacked.start.items()
    }
    given = x.clone().requires_grad_()
    grad = torch.randn(x.shape, generator=generator)
    y = stacked(moved, given)
    grads = torch.autograd.grad(y, [given, *moved.values()], grad)
    for net in range(3):
        module = CATALOGUE[name].make()
        assert dict(module.named_parameters()).keys() == moved.keys()
        module.load_state_dict(
            {**module.state_dict(), **{key: value[net] for key, value in moved.items()}}
        )
        own = x[net].clone().requires_grad_()
        expected = module(own)
        torch.testing.assert_close(y[net], expected)
        theirs = torch.autograd.grad(expected, [own, *module.parameters()], grad[net])
        for mine, other in zip(grads, theirs, strict=True):
            torch.testing.assert_close(mine[net], other, rtol=1e-4, atol=1e-5)


def test_rrelu_draws_slopes_from_its_range_alike_for_a_seeds_nets_and_evaluates_as_torchs() -> None:
    stacked = StackedActivation("rrelu", CPU)
    x = torch.full((4, 2, 3, 3, 5), -1.0)
    y = stacked({}, x, make_noise([7, 8], 3, 4, CPU))
    assert torch.equal(y[0], y[1])
    assert torch.equal(y[2], y[3])
    assert not torch.equal(y[0], y[2])
    assert -1 / 3 <= y.min() < -0.3
    assert -0.15 < y.max() <= -1 / 8
    alone = stacked({}, x[:1], make_noise([8], 3, 1, CPU))
    assert torch.equal(alone[0], y[2])
    torch.testing.assert_close(stacked({}, x), F.rrelu(x, training=False))


@pytest.mark.parametrize(
    ("opt", "make"),
    [
        ("sgd", lambda net, lr: torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)),
        ("adam", lambda net, lr: torch.optim.Adam(net.parameters(), lr=lr)),
    ],
    ids=["sgd", "adam"],
)
@pytest.mark.parametrize("name", ["relu", "arelu", "pau", "prelu", "tanh", "slaf"])
def test_training_in_a_stack_is_training_one_by_one(
    name: str, opt: str, make: Callable[[nn.Module, float], torch.optim.Optimizer]
) -> None:
    """Two seeds with batches of their own at three rates, five steps, against torch's modules, autograd and optimisers."""
    rates, seeds = [1e-2, 1e-3, 1e-4], [3, 4]
    train, test = make_pictures(80), make_pictures(40, seed=1)
    orders = [batch_order(80, 16, epochs=1, steps=5, seed=seed) for seed in seeds]
    nets = [(lr, seed) for seed in seeds for lr in rates]
    stack = Stack(name, [initial_weights(seed, 1) for _, seed in nets], CPU)
    optimiser = OPTIMISERS[opt](stack.parameters, torch.tensor([lr for lr, _ in nets]))
    curves = train_stack(stack, optimiser, train, test, orders, seeds=seeds, evaluate_at={0, 5})
    assert curves is not None
    for number, (lr, seed) in enumerate(nets):
        net = make_net(name, initial_weights(seed, 1))
        one_by_one = make(net, lr)
        for chosen in orders[seeds.index(seed)][0]:
            one_by_one.zero_grad()
            F.cross_entropy(
                net(train.batch(chosen).permute(0, 3, 1, 2)), train.labels[chosen]
            ).backward()
            one_by_one.step()
        pairs = zip(weights_in_order(stack.weights_of(number), net), net.parameters(), strict=True)
        flat = [(ours.flatten(), theirs.detach().flatten()) for ours, theirs in pairs]
        ours, theirs = (torch.cat(side) for side in zip(*flat, strict=True))
        off = (ours - theirs).abs()
        within = off <= (2e-5 if opt == "sgd" else 0.1 * lr + 1e-5) + 1e-3 * theirs.abs()
        # Adam's first steps take the sign of gradients however small, and rounding, each
        # processor's own, decides those that are nearly zero: such a weight may go the other way
        # for all five steps, and some others after it. A fault of the optimiser moves them all.
        assert within.float().mean() >= (1 if opt == "sgd" else 0.9)
        assert opt == "sgd" or bool((off <= 2 * 5 * lr).all())
        with torch.no_grad():
            logits = net(test.batch(torch.arange(40)).permute(0, 3, 1, 2))
        torch.testing.assert_close(
            curves.evaluations[-1].loss[number],
            F.cross_entropy(logits, test.labels),
            rtol=1e-3,
            atol=1e-4,
        )


def test_a_net_that_diverges_leaves_the_others_of_its_stack_alone() -> None:
    train, test = make_pictures(64), make_pictures(30, seed=1)
    order = [batch_order(64, 16, epochs=1, steps=6, seed=0)]

    def trained(*rates: float) -> tuple[Stack, Tensor]:
        stack = Stack("slaf", [initial_weights(0, 1) for _ in rates], CPU)
        optimiser = OPTIMISERS["sgd"](stack.parameters, torch.tensor(rates))
        curves = train_stack(stack, optimiser, train, test, order, seeds=[0], evaluate_at={6})
        assert curves is not None
        return stack, curves.broken

    together, broken = trained(1e-3, 1e30, 1e-2)
    assert broken[1] > 0
    assert broken[[0, 2]].tolist() == [-1, -1]
    for number, lr in ((0, 1e-3), (2, 1e-2)):
        alone, _ = trained(lr)
        for key, value in alone.weights_of(0).items():
            torch.testing.assert_close(
                together.weights_of(number)[key], value, rtol=1e-5, atol=1e-7
            )


@pytest.mark.parametrize("channels", [1, 3])
def test_nets_begin_as_torchs_layers_do_whatever_other_threads_draw(channels: int) -> None:
    before = torch.random.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(11)
        layers = [
            nn.Conv2d(channels, 10, 5),
            nn.Conv2d(10, 20, 5),
            nn.Conv2d(20, 40, 3),
            nn.Linear(40, 10),
        ]
    theirs = [p for layer in layers for p in layer.parameters()]
    for ours, expected in zip(initial_weights(11, channels).values(), theirs, strict=True):
        torch.testing.assert_close(ours, expected.detach(), rtol=1e-6, atol=1e-8)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_stack_stops_where_it_is_told_to() -> None:
    train, test = make_pictures(64), make_pictures(20, seed=1)
    stack = Stack("relu", [initial_weights(0, 1)], CPU)
    optimiser = OPTIMISERS["sgd"](stack.parameters, torch.tensor([0.1]))
    steps: list[int] = []
    order = [batch_order(64, 16, epochs=1, steps=9, seed=0)]
    told = train_stack(
        stack,
        optimiser,
        train,
        test,
        order,
        seeds=[0],
        evaluate_at=(),
        stopped=lambda: len(steps) == 3,
        advanced=steps.append,
    )
    assert told is None
    assert steps == [1, 1, 1]


def test_pictures_are_judged_in_their_own_order() -> None:
    test = make_pictures(260, seed=5)
    stack = Stack("tanh", [initial_weights(seed, 1) for seed in (0, 1)], CPU)
    loss, correct = evaluate_stack(stack, test)
    for number, seed in enumerate((0, 1)):
        with torch.no_grad():
            logits = make_net("tanh", initial_weights(seed, 1))(
                test.batch(torch.arange(260)).permute(0, 3, 1, 2)
            )
        assert torch.equal(correct[number], logits.argmax(1) == test.labels)
        torch.testing.assert_close(
            loss[number], F.cross_entropy(logits, test.labels), rtol=1e-4, atol=1e-5
        )
