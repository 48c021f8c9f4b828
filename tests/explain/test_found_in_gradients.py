"""What is said of measured gradients is what they are, whichever way they speak."""

from __future__ import annotations

from arelu_tl.explain.gradients.report import (
    GradientPoint,
    GradientReport,
    SiteGradient,
    WeightGradient,
    found_in_gradients,
    summarise_gradients,
)


def site(
    name: str, vanishing: float, *, norm: float = 1.0, gain: float | None = 1.0
) -> SiteGradient:
    return SiteGradient(
        name, norm=norm, rms=norm / 10, zero=vanishing / 2, vanishing=vanishing, gain=gain
    )


def point(arm: str, step: int, sites: list[SiteGradient]) -> GradientPoint:
    weights = [
        WeightGradient(f"w{n}", 1.0, 0.1, relative, 0.0, 0.0)
        for n, relative in enumerate((0.1, 0.3, None))
    ]
    return GradientPoint(arm, step, "start" if not step else "training", sites, weights)


def report(*points: GradientPoint) -> GradientReport:
    return GradientReport("m", "d", 1e-3, 0, 8, 2, 0.05, list(points))


def test_a_summary_is_over_the_sites_that_a_gradient_reaches() -> None:
    sites = [
        site("a", 0.5, norm=2.0),
        site("b", 1.0, norm=0.0, gain=None),
        site("c", 0.3, norm=4.0),
        site("d", 0.1, norm=8.0),
    ]
    told = summarise_gradients(point("relu", 0, sites))
    assert (told.cut_off, told.norm, told.vanishing, told.zero) == (1, 4.0, 0.3, 0.15)
    assert told.first_to_last == 0.25
    assert told.relative == 0.2
    assert [each.name for each in told.worst] == ["a", "c", "d"]
    nothing = summarise_gradients(point("relu", 0, [site("a", 1.0, norm=0.0, gain=None)]))
    assert (nothing.cut_off, nothing.vanishing, nothing.gain, nothing.first_to_last) == (
        1,
        1.0,
        None,
        None,
    )


def test_the_sentences_tell_numbers_of_both_arms_and_turn_with_them() -> None:
    many = [site("a", 0.6, gain=0.7), site("b", 0.5, gain=0.7, norm=0.5)]
    few = [site("a", 0.1, gain=1.4), site("b", 0.5, gain=1.5, norm=2.0)]
    start, end, judged = found_in_gradients(
        report(
            point("relu", 0, many),
            point("relu", 9, many),
            point("arelu", 0, few),
            point("arelu", 7, few),
        )
    )
    assert start.startswith(
        "At the start, 30% of the gradient's elements vanish at the median site in arelu and 55% in relu"
    )
    assert "at most 0.05 of the site's rms; exactly 0: 15% and 28%" in start
    assert "fewer in arelu at 1 of 2 sites, more at 0." in start
    assert "passes on 1.45 times the norm that reaches it in arelu, 0.70 times in relu" in start
    assert (
        "from the last site to the first the norm is multiplied by 0.50 in arelu and 2.00 in relu."
        in start
    )
    assert end.startswith("After 9 (relu) and 7 (arelu) steps, ")
    asked = (
        "The paper's claim that AReLU resists vanishing gradients, asked of arelu in this one run"
    )
    assert judged.startswith(f"{asked} (seed 0; another may say otherwise): it holds for")
    assert (
        "holds for the elements of the gradient, of which fewer vanish; across depth the norm shrinks more"
        in judged
    )
    only, judged = found_in_gradients(report(point("relu", 0, few), point("arelu", 0, many)))
    assert "fewer in arelu at 0 of 2 sites, more at 1." in only
    assert (
        "does not hold for the elements of the gradient, of which more vanish; across depth the norm shrinks less"
        in judged
    )


def test_sites_that_nothing_reaches_are_said_and_one_arm_says_nothing() -> None:
    cut = [site("a", 1.0, norm=0.0, gain=None), site("b", 0.5)]
    told, _ = found_in_gradients(
        report(point("relu", 0, cut), point("arelu", 0, [site("a", 0.2), site("b", 0.5)]))
    )
    assert told.endswith("no gradient reaches 1 sites of relu and 0 of arelu.")
    assert found_in_gradients(report(point("relu", 0, cut))) == []
    told, _ = found_in_gradients(report(point("relu", 0, cut[:1]), point("arelu", 0, cut[:1])))
    assert (
        told
        == "At the start, no gradient reaches any site in either arm, as before a layer whose weight is 0."
    )


def test_where_the_norm_grows_towards_the_input_depth_is_no_merit_of_either_arm() -> None:
    grows = [site("a", 0.5, norm=9.0), site("b", 0.5, norm=3.0)]
    _, judged = found_in_gradients(report(point("relu", 0, grows), point("arelu", 0, grows)))
    assert "about as many vanish; across depth there is nothing to resist" in judged
    nothing = [site("a", 0.5), site("b", 1.0, norm=0.0, gain=None)]
    _, judged = found_in_gradients(report(point("relu", 0, grows), point("arelu", 0, nothing)))
    assert "nothing can be said of depth" in judged
