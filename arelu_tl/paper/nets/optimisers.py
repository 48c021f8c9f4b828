"""torch.optim's SGD and Adam over stacked parameters, with a learning rate for each net."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

MOMENTUM = 0.9
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class StackedOptimiser(ABC):
    """Updates ``parameters`` {name: (N, ...)} in place."""

    def __init__(self, parameters: Mapping[str, Tensor], rates: Tensor) -> None:
        """Set up the optimiser; ``rates`` (N,) are the learning rates of the nets."""
        self.parameters = parameters
        self.rates = {
            key: rates.to(p).view(-1, *[1] * (p.dim() - 1)) for key, p in parameters.items()
        }

    @abstractmethod
    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Make one step along ``gradients`` {name: (N, ...)}."""


class StackedSGD(StackedOptimiser):
    """SGD with momentum 0.9, as in the paper's code."""

    def __init__(self, parameters: Mapping[str, Tensor], rates: Tensor) -> None:
        super().__init__(parameters, rates)
        self._velocity = {key: torch.zeros_like(p) for key, p in parameters.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor]) -> None:
        for key, p in self.parameters.items():
            p.sub_(self.rates[key] * self._velocity[key].mul_(MOMENTUM).add_(gradients[key]))


class StackedAdam(StackedOptimiser):
    """Adam with torch's defaults, as in the paper's code."""

    def __init__(self, parameters: Mapping[str, Tensor], rates: Tensor) -> None:
        super().__init__(parameters, rates)
        self._mean = {key: torch.zeros_like(p) for key, p in parameters.items()}
        self._square = {key: torch.zeros_like(p) for key, p in parameters.items()}
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor]) -> None:
        self._steps += 1
        first, second = _BETAS
        corrections = 1 - first**self._steps, (1 - second**self._steps) ** 0.5
        for key, p in self.parameters.items():
            gradient = gradients[key]
            mean = self._mean[key].lerp_(gradient, 1 - first)
            square = self._square[key].mul_(second).addcmul_(gradient, gradient, value=1 - second)
            p.sub_(
                self.rates[key]
                / corrections[0]
                * mean
                / (square.sqrt() / corrections[1]).add_(_EPSILON)
            )


OPTIMISERS: dict[str, type[StackedOptimiser]] = {"sgd": StackedSGD, "adam": StackedAdam}
