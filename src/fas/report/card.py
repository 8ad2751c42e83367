"""What was measured, as lines of the card of a saved folder (`fas.conversion.card`)."""

from __future__ import annotations

from collections.abc import Sequence

from fas.report import words
from fas.report.results import Results


def measured_lines(results: Results) -> list[str]:
    """A table in Markdown: a line for each row that has a value, and what the values are of."""
    titles = ("", "coding", "T", words.metric_title(results), "against the control", "spikes/neuron")
    lines = [f"On {words.called(results.data)}, in simulation:", "", _line(titles), _line(["---"] * len(titles))]
    for row in results.rows:
        spikes = "" if row.spikes_per_neuron is None else f"{row.spikes_per_neuron:.2f}"
        stage2 = " (before Stage 2)" if words.stage2_label(row) == "before" else ""
        coding = words.coding_label(row) or words.schedule_label(row)
        lines.append(
            _line(
                (
                    words.model_label(row, results) + stage2, coding, str(row.timesteps or ""),
                    words.value_label(row, results), words.ratio_label(row, results), spikes,
                )
            )
        )  # fmt: skip
    return lines if results.rows else []


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
