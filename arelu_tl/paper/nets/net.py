"""MNIST-Conv, the paper's small net, as a stack.

It has three blocks of convolution, max pooling and activation, and a linear layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from arelu_tl.paper.nets.activations import Noise, StackedActivation
from arelu_tl.paper.nets.convolution import conv_pool

# (channels out, kernel) of each block; the last reduces 28 x 28 pixels to 1 x 1.
BLOCKS = ((10, 5), (20, 5), (40, 3))
CLASSES = 10


def initial_weights(seed: int, channels: int) -> dict[str, Tensor]:
    """Return the initial weights of one net, the same for every activation.

    They are those of torch's own layers after ``manual_seed(seed)``.

    Returns:
        {"conv1.weight": (D, C, K, K), "conv1.bias": (D,), ..., "fc.weight": (10, 40), "fc.bias":
        (10,)}, in torch's layout.
    """
    # Not by torch's layers themselves, which draw from a generator that all threads share.
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (after, kernel) in enumerate(BLOCKS, start=1):
        shapes[f"conv{number}"] = (after, channels, kernel, kernel)
        channels = after
    shapes["fc"] = (CLASSES, channels)
    weights = {}
    for name, shape in shapes.items():
        bound = math.prod(shape[1:]) ** -0.5
        for key, size in (("weight", shape), ("bias", shape[:1])):
            weights[f"{name}.{key}"] = torch.empty(size).uniform_(
                -bound, bound, generator=generator
            )
    return weights


class Stack:
    """N nets of one activation, each with its own weights.

    Attributes:
        parameters: {name: (N, ...)}, leaves that require gradients; convolutions are (N, K, K, C,
            D), the linear layer (N, 40, 10).
    """

    def __init__(
        self, activation: str, weights: list[dict[str, Tensor]], device: torch.device
    ) -> None:
        """Make a stack from the ``weights`` of each net.

        They are as from ``initial_weights`` or ``weights_of``, and may include the activation's.
        """
        self.activation = StackedActivation(activation, device)
        self.nets = len(weights)
        sites = {
            f"act{n}.{key}": value
            for n in range(1, len(BLOCKS) + 1)
            for key, value in self.activation.start.items()
        }
        complete = [
            {**{key: value.cpu() for key, value in sites.items()}, **each} for each in weights
        ]
        self.parameters = {
            key: torch.stack([_turned(key, each[key]) for each in complete])
            .contiguous()
            .to(device)
            .requires_grad_()
            for key in complete[0]
        }

    def __call__(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Return logits (N, B, 10) of ``images`` (S, B, 28, 28, C).

        Net n sees ``images[n // (N // S)]``.
        """
        h = images
        for number in range(1, len(BLOCKS) + 1):
            h = conv_pool(
                h, self.parameters[f"conv{number}.weight"], self.parameters[f"conv{number}.bias"]
            )
            site = f"act{number}."
            own = {
                key[len(site) :]: value
                for key, value in self.parameters.items()
                if key.startswith(site)
            }
            h = self.activation(own, h, noise)
        return torch.baddbmm(
            self.parameters["fc.bias"][:, None], h.flatten(2), self.parameters["fc.weight"]
        )

    def weights_of(self, net: int) -> dict[str, Tensor]:
        """Return the weights of one net, including its activation's, in torch's layout."""
        return {
            key: _turned_back(key, value[net].detach().cpu())
            for key, value in self.parameters.items()
        }


def _turned(name: str, weight: Tensor) -> Tensor:
    """Convert torch's order of dimensions to the stack's."""
    if name.startswith("act") or weight.dim() < 2:
        return weight
    return weight.permute(2, 3, 1, 0) if weight.dim() == 4 else weight.t()


def _turned_back(name: str, weight: Tensor) -> Tensor:
    if name.startswith("act") or weight.dim() < 2:
        return weight.clone()
    return (weight.permute(3, 2, 0, 1) if weight.dim() == 4 else weight.t()).contiguous()
