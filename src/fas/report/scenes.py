"""Pictures that two models were asked about, with their answers and the spikes of the vision tower, for the report."""

from __future__ import annotations

from dataclasses import dataclass

from fas.report.plots import INK, figure_of, finish
from fas.report.results import Results

_MODELS = {"ann": "ANN", "snn": "SNN"}
_FIRED = "#d9702f"


@dataclass(frozen=True)
class Asked:
    """A question, what each model answered, and what is right."""

    question: str
    answers: list[str]
    right: str

    @property
    def differ(self) -> bool:
        """Whether not all models said the same."""
        return len(set(self.answers)) > 1


@dataclass(frozen=True)
class Scene:
    """A picture (base64 PNG), the questions about it, and the figure of its spikes (SVG)."""

    png: str
    models: list[str]
    questions: list[Asked]
    spikes: str


def shown(results: Results) -> list[Scene]:
    """The scenes of ``extra["scenes"]``: each has ``png``, ``questions`` and ``spikes`` (site: ``[T, rows, columns]``)."""
    found = results.extra.get("scenes", [])
    most = {
        site: max(_most(scene["spikes"][site]) for scene in found) for site in (found[0]["spikes"] if found else {})
    }
    return [
        Scene(
            scene["png"],
            list(_MODELS.values()),
            [Asked(one["question"], [one[key] for key in _MODELS], one["right"]) for one in scene["questions"]],
            spikes_over_patches(scene["spikes"], most),
        )
        for scene in found
    ]


def _most(counts: list[list[list[int]]]) -> int:
    return max(1, max(max(row) for grid in counts for row in grid))


def spikes_over_patches(spikes: dict[str, list[list[list[int]]]], most: dict[str, int]) -> str:
    """A row of maps for each site, one map a timestep; the full colour is ``most`` spikes of a patch."""
    from matplotlib.colors import to_rgba

    timesteps = len(next(iter(spikes.values())))
    figure, panels = figure_of(len(spikes), timesteps, height=0.35 + 1.02 * len(spikes))
    for index, axes in enumerate(panels):
        (site, grids), t = list(spikes.items())[index // timesteps], index % timesteps
        colours = [[to_rgba(_FIRED, count / most[site]) for count in row] for row in grids[t]]
        axes.imshow(colours, interpolation="none")
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set(visible=True, alpha=0.25)
        axes.set_xticks([])
        axes.set_yticks([])
        if t == 0:
            axes.set_ylabel(_short(site), fontsize="x-small", color=INK)
        if index < timesteps:
            axes.set_title(f"t = {t + 1}", fontsize="x-small", color=INK)
    return finish(figure)


def _short(site: str) -> str:
    """Layer and kind of a site.

    >>> _short("model.vision_tower.encoder.layers.2.ffn_hidden")
    'layer 2\\nffn hidden'
    """
    layer = next((part for part in reversed(site.split(".")) if part.isdigit()), None)
    kind = site.rsplit(".", 1)[-1].replace("_", " ")
    return kind if layer is None else f"layer {layer}\n{kind}"


def scenes_as_text(results: Results) -> str:
    """Questions and answers as lines, with the number of those on which the models agree."""
    scenes = shown(results)
    asked = [one for scene in scenes for one in scene.questions]
    agreed = sum(not one.differ for one in asked)
    lines = [f"{'question':36}{''.join(f'{name:12}' for name in _MODELS.values())}right"]
    lines += [f"{one.question:36}{''.join(f'{text:12}' for text in one.answers)}{one.right}" for one in asked]
    return "\n".join(
        [*lines, f"ANN and SNN agree on {agreed} of {len(asked)} questions about {len(scenes)} test pictures."]
    )
