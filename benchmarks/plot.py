"""Pictures of the figures: a row of small panels, one bar a peer, Yaat in colour."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figures import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = Mapping[str, Figure]
OURS, OTHERS = "#c2410c", "#94a3b8"
# So that the same figures give the same file; text stays text.
REPRODUCIBLE: Any = {"svg.hashsalt": "yaat", "svg.fonttype": "none", "font.size": 9}


def draw(
    path: Path, title: str, unit: str, panels: Mapping[str, Panel], *, floor: float, spec: str
) -> None:
    """Write one SVG; a line marks the floor, which is where bare stands, `spec` formats figures."""
    # Imported here, since it takes longer than everything else together.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Picture

    with rc_context(REPRODUCIBLE):
        rows = max(len(panel) for panel in panels.values())
        size = (2.6 * len(panels) + 1, 0.32 * rows + 1.2)
        picture = Picture(figsize=size, layout="constrained")
        FigureCanvasSVG(picture)
        picture.suptitle(title, fontsize=11)
        picture.supxlabel(unit, fontsize=9)
        axes = picture.subplots(1, len(panels), squeeze=False)[0]
        for number, (name, panel) in enumerate(panels.items()):
            bars(axes[number], name, panel, floor, spec)
            axes[number].tick_params(labelleft=number == 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path, metadata={"Date": None})
    print(f"\n![{title}: {unit}](images/{path.name})")


def bars(axes: "Axes", name: str, panel: Panel, floor: float, spec: str) -> None:
    peers = list(panel)
    middles = [panel[peer].middle for peer in peers]
    # A median may lie a rounding error outside of its own percentiles.
    below = [max(0.0, figure.middle - figure.low) for figure in panel.values()]
    above = [max(0.0, figure.high - figure.middle) for figure in panel.values()]
    colours = [OURS if "Yaat" in peer else OTHERS for peer in peers]
    axes.barh(peers, middles, color=colours, xerr=(below, above), ecolor="#334155", capsize=2)
    axes.axvline(floor, color="#334155", linewidth=0.8, linestyle=":")
    axes.invert_yaxis()
    axes.set_title(name, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    for position, middle in enumerate(middles):
        axes.annotate(
            f"{middle:{spec}}",
            (1.02, position),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
