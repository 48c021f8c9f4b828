"""Grad-CAM against the class-activation map that it is where the head is a mean and a linear layer."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from arelu_tl.explain.features.maps import grad_cam


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_it_is_cam_by_the_heads_weights(name: str) -> None:
    torch.manual_seed(0)
    model, picture = timm.create_model(name, num_classes=5).eval(), torch.randn(1, 3, 160, 128)
    head = model.get_classifier()
    for label in range(5):
        found = grad_cam(model, picture, label).map
        with torch.no_grad():
            features = model.forward_features(picture)
            cam = (
                torch.einsum("c,chw->hw", head.weight[label], features[0]) / features[0, 0].numel()
            )
            # Before it is cut at 0 the map is what the logit is made of.
            torch.testing.assert_close(
                cam.sum(), model(picture)[0, label] - head.bias[label], rtol=1e-4, atol=1e-5
            )
        torch.testing.assert_close(found, cam.relu(), rtol=1e-4, atol=1e-7)


class Net(nn.Module):
    """timm's shape of a net, whose head begins with an activation in place."""

    def __init__(self, *, channels_last: bool = False, extra: float = 0.0) -> None:
        super().__init__()
        self.num_features = 6
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.act = nn.ReLU(inplace=True)
        self.channels_last, self.extra = channels_last, extra

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.permute(0, 2, 3, 1) if self.channels_last else x

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(self.act(x).mean((1, 2) if self.channels_last else (2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x)) + self.extra * x.mean()


def test_channels_last_and_a_head_in_place() -> None:
    torch.manual_seed(0)
    first, last = Net(), Net(channels_last=True)
    last.load_state_dict(first.state_dict())
    picture = torch.randn(1, 3, 9, 7)
    expected, found = (grad_cam(net, picture, 2).map for net in (first, last))
    assert expected is not None
    assert expected.shape == (7, 5)
    torch.testing.assert_close(found, expected)
    features = first.forward_features(picture)[0].detach()
    weights = first.head.weight[2].detach() * (features > 0).float().mean((1, 2)) / 35
    torch.testing.assert_close(expected, torch.einsum("c,chw->hw", weights, features).relu())


@pytest.mark.parametrize(
    ("model", "size", "words"),
    [
        (timm.create_model("test_vit"), 160, "no map: shape (101, 64)"),
        (timm.create_model("test_resnet"), 32, "one place"),
        (Net(extra=9.0), 9, "more than"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), 9, "does not tell"),
    ],
    ids=["tokens", "one place", "more than features", "no timm net"],
)
def test_where_there_is_no_map_the_reason_is_told(model: nn.Module, size: int, words: str) -> None:
    found = grad_cam(model.eval(), torch.randn(1, 3, size, size) + 1, 0)
    assert found.map is None
    assert words in found.reason
