"""What goes through the sites is seen as it is, before surgery and after it, wherever a ReLU hides and whatever it overwrites."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from arelu_tl.activation.arelu import AReLU, named_arelus
from arelu_tl.activation.catalogue import SiteActivation
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.convert import convert
from arelu_tl.surgery.sites import Site, find_sites
from arelu_tl.surgery.watch import Passage, observe_sites


class Mixed(nn.Module):
    """A ReLU of every kind; each stage's input can be computed from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.fourth = (
            nn.Conv2d(c, 4, 1) for c in (3, 4, 4, 4)
        )
        self.act = nn.ReLU(inplace=True)
        self.shared = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.shared(self.second(x))
        x = F.relu(self.third(x), inplace=True)
        x = self.shared(self.fourth(x))
        return x.add_(1).mean((2, 3))  # overwrites what the last site gave


def observed(model: nn.Module, sites: list[Site], x: Tensor) -> tuple[Tensor, dict[int, Passage]]:
    seen: dict[int, Passage] = {}
    answer: list[Tensor] = []
    with torch.no_grad():
        observe_sites(
            model, sites, lambda: answer.append(model(x.clone())), lambda k, p: seen.update({k: p})
        )
    return answer[0], seen


def mixed() -> tuple[Mixed, Tensor]:
    torch.manual_seed(0)
    return Mixed().eval(), torch.randn(1, 3, 6, 5) * 90


def test_before_surgery_each_site_has_its_own_input_and_output() -> None:
    model, x = mixed()
    sites = find_sites(model, x)
    answer, seen = observed(model, sites, x)
    with torch.no_grad():
        assert torch.equal(answer, model(x.clone()))
        for number, conv in enumerate((model.first, model.second, model.third, model.fourth)):
            before = conv(x)
            x = F.relu6(before) if number in (1, 3) else F.relu(before)
            torch.testing.assert_close(seen[number].before, before, rtol=0, atol=0)
            torch.testing.assert_close(seen[number].after, x, rtol=0, atol=0)
            factor = (before >= 0).float()
            if number in (1, 3):
                factor = torch.where(before > 6, 6 / before, factor)
            torch.testing.assert_close(seen[number].attention, factor)
    assert (seen[1].before > 6).any()


def slopes(module: AReLU, x: Tensor) -> Tensor:
    """What AReLU multiplies each element by, by the paper's equation 3, the cap considered."""
    shape = [1, -1, *[1] * (x.dim() - 2)]
    alpha, beta = (
        p.detach().clamp(*ends).view(shape)
        for p, ends in ((module.alpha, (0.01, 0.99)), (module.beta, (-99, 99)))
    )
    factor = torch.where(x >= 0, module.scale * (1 + beta.sigmoid()), module.scale * alpha)
    return (
        factor
        if module.cap is None
        else torch.where(factor * x > module.cap, module.cap / x, factor)
    )


@pytest.mark.parametrize("granularity", ["site", "channel"])
@pytest.mark.parametrize("inplace", [True, False])
def test_after_surgery_the_same_sites_are_seen_and_attention_is_the_papers(
    granularity: str, inplace: bool
) -> None:
    model, x = mixed()
    sites = find_sites(model, x)
    _, before = observed(model, sites, x)
    convert(model, init="paper", granularity=granularity, example_input=x, inplace=inplace)
    modules = dict(named_arelus(model))
    torch.manual_seed(1)
    for module in modules.values():
        nn.init.uniform_(module.alpha, -0.5, 1.5)
        nn.init.normal_(module.beta)
    answer, after = observed(model, sites, x)
    with torch.no_grad():
        assert torch.equal(answer, model(x.clone()))
    assert before.keys() == after.keys() == {0, 1, 2, 3}
    torch.testing.assert_close(after[0].before, before[0].before, rtol=0, atol=0)
    for number, passage in after.items():
        expected = slopes(modules[sites[number].name], passage.before)
        torch.testing.assert_close(passage.attention, expected)
        torch.testing.assert_close(passage.after, expected * passage.before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@settings(deadline=None, max_examples=60)
@given(
    alpha=st.floats(0.01, 0.99),
    beta=st.floats(-8, 8),
    scale=st.floats(0.1, 2),
    cap=st.none() | st.floats(1, 8),
    values=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=12),
)
def test_attention_at_any_number_and_at_zero(
    alpha: float, beta: float, scale: float, cap: Any, values: list[float]
) -> None:
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    x = torch.tensor([values])
    sites = find_sites(model, x)
    model[1] = AReLU(alpha, beta, scale=scale, cap=cap)
    _, seen = observed(model, sites, x)
    torch.testing.assert_close(seen[0].attention, slopes(model[1], x))


@pytest.mark.parametrize(
    ("name", "exclude"),
    [("test_resnet", None), ("test_resnet", "layer2.*"), ("mobilenetv3_small_050", None)],
)
def test_timm_nets_have_the_same_sites_in_both_arms(name: str, exclude: str | None) -> None:
    torch.manual_seed(0)
    model, x = timm.create_model(name).eval(), torch.randn(1, 3, 64, 64)
    sites = find_sites(model, x)
    _, before = observed(model, sites, x)
    convert(model, init="paper", exclude=exclude, example_input=x)
    with torch.no_grad():
        expected = model(x)
    answer, after = observed(model, sites, x)
    assert torch.equal(answer, expected)
    running = [number for number, site in enumerate(sites) if site.runs]
    assert list(before) == list(after) == running
    assert all(before[k].before.shape == after[k].before.shape == sites[k].shape for k in running)


def test_an_activation_that_does_not_keep_zero_has_no_attention() -> None:
    model, x = mixed()
    sites = find_sites(model, x)
    convert(model, arm="sigmoid", init="paper", example_input=x, include="act")
    _, seen = observed(model, sites, x)
    assert seen[0].attention is None
    assert seen[1].attention is not None


def test_an_activation_that_is_made_of_relus_is_one_site() -> None:
    model, x = mixed()
    sites = find_sites(model, x)
    model.act = SiteActivation(nn.Sequential(nn.ReLU(), nn.ReLU6(inplace=True)), inplace=True)  # type: ignore[assignment]
    _, seen = observed(model, sites, x)
    assert sorted(seen) == [0, 1, 2, 3]
    torch.testing.assert_close(seen[0].after, seen[0].before.clamp(0, 6))


def test_other_sites_than_recorded_are_an_error() -> None:
    model, x = mixed()
    sites = find_sites(model, x)
    for wrong, words in ((sites[:3], "more"), (sites * 2, "fewer")):
        with pytest.raises(SurgeryError, match=words):
            observed(model, wrong, x)
    convert(model, init="paper", example_input=x)
    with pytest.raises(SurgeryError, match="act in the place of relu_sites"):
        observed(model, sites[::-1], x)
    model, x = mixed()
    convert(model, init="paper", example_input=x, exclude="act")
    with pytest.raises(SurgeryError, match="a ReLU in the place of relu_sites"):
        observed(model, sites[::-1], x)
