"""The numbers that describe one validation curve, against values worked out by hand."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arelu_tl.records.runs import aulc, common_steps, steps_to_target

Curve = tuple[list[int], list[float]]
QUICK = settings(deadline=None, max_examples=60)
accuracies = st.floats(0, 1)


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    """Steps ascending from 0, and an accuracy at each."""
    gaps = draw(st.lists(st.integers(1, 500), max_size=8))
    steps = [sum(gaps[:i]) for i in range(len(gaps) + 1)]
    return steps, draw(st.lists(accuracies, min_size=len(steps), max_size=len(steps)))


@pytest.mark.parametrize(
    ("steps", "accuracy", "area"),
    [
        ([0, 10], [0.0, 1.0], 0.5),
        ([0, 10, 20], [0.0, 0.5, 1.0], 0.5),
        ([0, 10, 20], [0.0, 1.0, 1.0], 0.75),
        ([0, 1, 4], [0.0, 0.6, 0.8], (0.3 + 3 * 0.7) / 4),  # unequal gaps weigh by their length
        ([0, 5, 10], [0.2, 0.9, 0.4], (5 * 0.55 + 5 * 0.65) / 10),
        ([0], [0.3], 0.3),
        ([40], [0.7], 0.7),
        (
            [10, 20],
            [0.2, 0.4],
            0.3,
        ),  # a curve that does not begin at 0 is averaged over its own steps
    ],
)
def test_the_area_is_that_worked_out_by_hand(
    steps: list[int], accuracy: list[float], area: float
) -> None:
    assert aulc(steps, accuracy) == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize(("steps", "accuracy"), [([], []), ([0, 1], [0.5]), ([0], [0.5, 0.6])])
def test_a_curve_without_its_points_is_refused(steps: list[int], accuracy: list[float]) -> None:
    with pytest.raises(ValueError, match="as many accuracies as steps"):
        aulc(steps, accuracy)


@given(curves())
@QUICK
def test_the_area_lies_between_the_least_and_the_best_accuracy(curve: Curve) -> None:
    steps, accuracy = curve
    assert min(accuracy) - 1e-9 <= aulc(steps, accuracy) <= max(accuracy) + 1e-9


@given(curve=curves(), factor=st.integers(1, 1000))
@QUICK
def test_the_area_does_not_depend_on_the_unit_of_a_step(curve: Curve, factor: int) -> None:
    steps, accuracy = curve
    assert aulc([step * factor for step in steps], accuracy) == pytest.approx(
        aulc(steps, accuracy), abs=1e-9
    )


@given(curve=curves(), data=st.data())
@QUICK
def test_an_evaluation_on_the_line_between_two_others_changes_no_area(
    curve: Curve, data: st.DataObject
) -> None:
    steps, accuracy = [0, *(step + 2 for step in curve[0])], [0.5, *curve[1]]
    at = data.draw(st.integers(0, len(steps) - 2))
    between = steps[at] + 1
    assume(between < steps[at + 1])
    share = 1 / (steps[at + 1] - steps[at])
    value = accuracy[at] + share * (accuracy[at + 1] - accuracy[at])
    finer = (
        [*steps[: at + 1], between, *steps[at + 1 :]],
        [*accuracy[: at + 1], value, *accuracy[at + 1 :]],
    )
    assert aulc(*finer) == pytest.approx(aulc(steps, accuracy), abs=1e-9)


@given(curve=curves(), gain=st.floats(0, 0.5), data=st.data())
@QUICK
def test_a_curve_that_is_nowhere_lower_has_no_smaller_area(
    curve: Curve, gain: float, data: st.DataObject
) -> None:
    steps, accuracy = curve
    at = data.draw(st.integers(0, len(steps) - 1))
    better = [*accuracy[:at], min(1.0, accuracy[at] + gain), *accuracy[at + 1 :]]
    assert aulc(steps, better) >= aulc(steps, accuracy) - 1e-9


@pytest.mark.parametrize(
    ("target", "step"),
    [(0.0, 0), (0.1, 0), (0.11, 10), (0.6, 10), (0.61, 30), (0.8, 30), (0.81, None)],
)
def test_the_target_is_reached_at_the_first_step_that_has_it(
    target: float, step: int | None
) -> None:
    # It falls below 0.6 again at step 20: what counts is when it was reached first.
    assert steps_to_target([0, 10, 20, 30], [0.1, 0.6, 0.5, 0.8], target) == step


def test_no_evaluation_reaches_no_target() -> None:
    assert steps_to_target([], [], 0.5) is None


@given(curve=curves(), target=accuracies)
@QUICK
def test_before_the_target_is_reached_every_accuracy_is_below_it(
    curve: Curve, target: float
) -> None:
    steps, accuracy = curve
    reached = steps_to_target(steps, accuracy, target)
    if reached is None:
        assert max(accuracy) < target
    else:
        at = steps.index(reached)
        assert accuracy[at] >= target
        assert all(value < target for value in accuracy[:at])


@pytest.mark.parametrize(
    ("a", "b", "common"),
    [
        ([0, 5, 10], [0, 5, 10, 15], 10),
        ([0], [0, 5], 0),
        ([], [0, 5], 0),
        ([0, 5], [], 0),
        ([], [], 0),
    ],
)
def test_common_steps_end_where_the_shorter_curve_does(
    a: list[int], b: list[int], common: int
) -> None:
    assert common_steps(a, b) == common
    assert common_steps(b, a) == common
