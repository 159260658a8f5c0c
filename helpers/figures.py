"""The look of every figure, whatever the user has set, and what a notebook needs to show it."""

import io

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps, rc_context, rcParamsDefault
from matplotlib.figure import Figure

INK, BLUE, ORANGE, GREY = "#222222", "#3465a4", "#d9730d", "#9a9a9a"
OURS = {"figure.dpi": 110, "font.size": 9, "axes.titlesize": 11, "axes.titlelocation": "left", "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "savefig.facecolor": "auto"}  # fmt: skip
LOOKS = ("_internal", "axes", "figure", "font", "grid", "hatch", "image", "legend", "lines", "markers", "mathtext",
         "patch", "path", "scatter", "text", "xaxis", "xtick", "yaxis", "ytick")  # fmt: skip
# A decorator for every function that makes a figure: inside it, figures look as matplotlib's defaults and we say, not
# as the user has set; afterwards the user's settings are as they were.
in_our_look = rc_context({key: rcParamsDefault[key] for key in rcParamsDefault if key.split(".")[0] in LOOKS} | OURS)


class Picture(Figure):
    """A figure in our look, which a notebook shows whatever matplotlib's backend is; `alt` says in words what it is."""

    alt = ""

    # Some of a figure, such as its ticks, is made only when it is drawn or measured.
    draw, get_tightbbox, savefig = map(in_our_look, (Figure.draw, Figure.get_tightbbox, Figure.savefig))

    def _repr_png_(self) -> bytes:
        return png(self)

    def _repr_mimebundle_(self, **_) -> tuple[dict, dict]:
        return {}, {"image/png": {"alt": self.alt}}  # static pages read it aloud where the picture cannot be seen


def blank(size: tuple[float, float]) -> Picture:
    """A figure of `size` inches, by pyplot, which sets up notebooks; shown once, by being returned."""
    figure = plt.figure(figsize=size, layout="constrained", FigureClass=Picture)
    plt.close(figure)
    return figure


def empty(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 3.2)) -> tuple[Picture, np.ndarray]:
    """A figure of `size` inches, and its axes (rows, columns)."""
    figure = blank(size)
    return figure, figure.subplots(rows, columns, squeeze=False)


def said(*parts: str) -> str:
    """Labels as one sentence, for `Picture.alt`."""
    return "; ".join(" ".join(part.split()) for part in parts if part.strip()) + "."


def literal(text: str) -> str:
    """A text of the user's for a figure, where a pair of dollar signs would begin and end a formula."""
    return str(text).replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, for an image widget."""
    buffer = io.BytesIO()
    ours = {"dpi": figure.dpi, "pad_inches": 0.1, "transparent": False}  # whatever is set for a user's own files
    figure.savefig(buffer, format="png", bbox_inches="tight", **ours)
    return buffer.getvalue()


def colours(count: int) -> list:
    """As many colours as there are curves, none twice: the house's first."""
    named = [BLUE, ORANGE, GREY, INK, "#4e9a06", "#ad7fa8"]
    return [*named, *(colormaps["viridis"](i / count) for i in range(count - len(named)))][:count]
