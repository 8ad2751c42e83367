"""Advice after a conversion is given where more moves help, and only there."""

from fas.pipeline.advice import more_moves
from fas.report.results import Row


def spiking(loss: float, timesteps: int, neurons: int = 2, **given: object) -> Row:
    return Row(
        name="snn", loss=loss, timesteps=timesteps, neurons_per_channel=neurons, coding="sigma_delta",
        schedule="synchronous", stage2=True, **given,
    )  # fmt: skip


QCFS = Row(name="qcfs", loss=3.0)


def test_the_farthest_row_is_named_with_both_remedies() -> None:
    said = more_moves([QCFS, spiking(3.2, 4), spiking(3.05, 6)])
    assert said is not None
    assert said.startswith("T = 4 is 0.20 nats from the QCFS model: with 2 neurons a channel a value makes 8 moves")
    assert "--neurons-per-channel 4 or --timesteps 8" in said


def test_nothing_is_said_where_more_moves_are_no_remedy() -> None:
    assert more_moves([QCFS, spiking(3.02, 4)]) is None  # near enough
    assert more_moves([QCFS, spiking(3.5, 8)]) is None  # sixteen moves already
    assert more_moves([spiking(3.5, 4)]) is None  # nothing to compare with
    assert more_moves([QCFS, Row(name="snn", loss=9.0, timesteps=4, coding="rate", schedule="synchronous")]) is None
    assert (
        more_moves([QCFS, Row(name="snn", loss=9.0, timesteps=4, coding="sigma_delta", schedule="layerwise")]) is None
    )
