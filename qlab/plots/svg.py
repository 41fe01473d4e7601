"""Draw once, show twice: a Picture is a list of marks that becomes an SVG string (40 ms to the
screen) or a Matplotlib figure.

Coordinates are pixels, y down. Colours are names: the SVG leaves ink and paper to the page's theme
    (JupyterLab's CSS
variables), the figure uses their light values; the marks keep their colour in both. Not here: what
a picture is about.
"""

from __future__ import annotations

import dataclasses
import html
from typing import TYPE_CHECKING, Any

import numpy as np

from qlab.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# name -> (in a page, in a figure): what the page's theme decides, and the house's colours, alike
# in both.
COLOURS = {
    "ink": ("var(--jp-ui-font-color1,#212121)", "#212121"),
    "muted": ("var(--jp-ui-font-color2,#616161)", "#616161"),
    "faint": ("var(--jp-border-color1,#bdbdbd)", "#bdbdbd"),
    "panel": ("var(--jp-layout-color2,#ececec)", "#ececec"),
    "paper": ("var(--jp-layout-color1,#fff)", "#ffffff"),
    "none": ("none", "none"),
    **{name: (colour, colour) for name, colour in style.COLOURS.items()},
}
# Latin and Hangul of one design, by name: a page must not depend on what its reader's system falls
# back to.
FONTS = ("Noto Sans CJK KR", "Noto Sans KR", "Apple SD Gothic Neo", "Malgun Gothic", "DejaVu Sans")
MARGIN = 12  # around a figure, in pixels
DASH = {"": None, "dash": (5, 3), "dot": (1.5, 2.5)}


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """Polylines or polygons that share a look; `points` is a list of (n, 2) arrays."""

    points: list[np.ndarray]
    fill: str = "none"
    stroke: str = "none"
    width: float = 1.0
    opacity: float = 1.0
    dash: str = ""
    closed: bool = False
    title: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Boxes:
    """Many boxes of one size and look; `corners` is (n, 2), their upper left."""

    corners: np.ndarray
    size: tuple[float, float]
    fill: str
    opacity: float


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """One line of text; y is its baseline."""

    x: float
    y: float
    words: str
    size: float = 12
    colour: str = "ink"
    anchor: str = "start"
    bold: bool = False
    turn: float = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Pick:
    """A rectangle that can be clicked, focused and given keys; invisible, and not in the figure."""

    name: str
    box: tuple[float, float, float, float]
    label: str
    checked: bool | None = None


class Picture:
    """Marks on a fixed area.

    Args:
        width, height: in pixels.

    Attributes:
        label: the result in words, for those who do not see the picture; set it before `svg`.

    Example:
        >>> picture = Picture(100, 40)
        >>> picture.rect(0, 0, 50, 40, fill="blue")
        >>> picture.svg().startswith('<div class="qlab-picture"')
        True
    """

    def __init__(self, width: float, height: float):
        self.width, self.height, self.label = width, height, ""
        self.marks: list[Shape | Boxes | Text] = []
        self.picks: list[Pick] = []

    def rect(self, x: float, y: float, w: float, h: float, **look: Any) -> None:
        """A rectangle; `look` as the fields of Shape."""
        corners = np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)])
        self.marks.append(Shape([corners], closed=True, **look))

    def polygon(self, corners: Any, **look: Any) -> None:
        """A polygon through `corners` (n, 2)."""
        self.marks.append(Shape([np.asarray(corners, float)], closed=True, **look))

    def line(self, xs: Any, ys: Any, stroke: str = "ink", **look: Any) -> None:
        """A polyline through (xs, ys)."""
        points = np.column_stack(np.broadcast_arrays(xs, ys)).astype(float)
        self.marks.append(Shape([points], stroke=stroke, **look))

    def segments(
        self, x1: Any, y1: Any, x2: Any, y2: Any, stroke: str = "ink", **look: Any
    ) -> None:
        """Many straight lines (x1, y1) – (x2, y2) of one look."""
        a = np.stack(np.broadcast_arrays(x1, y1, x2, y2), -1).reshape(-1, 2, 2).astype(float)
        if len(a):
            self.marks.append(Shape(list(a), stroke=stroke, **look))

    def dots(self, x: Any, y: Any, radius: float = 3, fill: str = "ink", **look: Any) -> None:
        """Many discs of one look, drawn as polygons: 8 corners, 20 for large ones."""
        corners = 8 if radius < 4 else 20
        turn = (np.arange(corners) + 0.5) * 2 * np.pi / corners
        ring = radius * 1.02 * np.column_stack([np.cos(turn), np.sin(turn)])
        centres = np.stack(np.broadcast_arrays(x, y), -1).reshape(-1, 1, 2).astype(float)
        if len(centres):
            self.marks.append(Shape(list(centres + ring), fill=fill, closed=True, **look))

    def bars(self, edges: Any, tops: Any, base: float, fill: str = "blue", **look: Any) -> None:
        """A histogram as one outline: bin edges (n + 1) in x, tops (n) in y."""
        xs = np.repeat(edges, 2)
        ys = np.concatenate([[base], np.repeat(tops, 2), [base]])
        points = np.column_stack([xs, ys]).astype(float)
        self.marks.append(Shape([points], fill=fill, closed=True, **look))

    def cells(self, box: tuple[float, float, float, float], shades: Any, fill: str) -> None:
        """A heat map in `box` (x, y, w, h): shades (rows, columns) in 0 … 1, ten steps, 0 shows
        the page.
        """
        x, y, w, h = box
        steps = np.clip(np.ceil(np.asarray(shades) * 10), 0, 10).astype(int)
        rows, columns = steps.shape
        size = (w / columns, h / rows)
        for step in range(1, 11):
            r, c = np.nonzero(steps == step)
            corners = np.column_stack([x + c * size[0], y + r * size[1]])
            if len(corners):
                self.marks.append(Boxes(corners, size, fill, step / 10))

    def text(self, x: float, y: float, words: str, **look: Any) -> None:
        """A line of text, (x, y) on its baseline; `look` as the fields of Text."""
        self.marks.append(Text(x, y, words, **look))

    def pick(
        self,
        name: str,
        box: tuple[float, float, float, float],
        label: str,
        checked: bool | None = None,
    ) -> None:
        """Something to click or to reach with Tab; a switch if `checked` is not None."""
        self.picks.append(Pick(name, box, label, checked))

    def svg(self, scale: float = 1.0, picks: bool = True) -> str:
        """The picture for a page: the image with its words, and over it what can be picked."""
        wide, high = self.width * scale, self.height * scale
        box = f'width="{wide:g}" height="{high:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
        fonts = ",".join(f"'{f}'" for f in FONTS) + ",sans-serif"
        label = html.escape(self.label, quote=True)
        drawn = "".join(map(_svg_mark, self.marks))
        over = ""
        if picks and self.picks:
            over = f'<svg class="qlab-picks" role="group" {box}>'
            over += "".join(map(_svg_pick, self.picks)) + "</svg>"
        area = f"position:relative;width:{wide:g}px;height:{high:g}px"
        return (
            f'<div class="qlab-picture" style="{area}">'
            f'<svg role="img" aria-label="{label}" {box} style="display:block;font-family:{fonts}">'
            f"{drawn}</svg>{over}</div>"
        )

    def figure(self) -> Figure:
        """The same picture as a Matplotlib figure of 100 pixels an inch, on white."""
        from matplotlib.figure import Figure

        wide, high = self.width + 2 * MARGIN, self.height + 2 * MARGIN
        figure = Figure(figsize=(wide / 100, high / 100), dpi=100, facecolor="white")
        ends = {"xlim": (-MARGIN, self.width + MARGIN), "ylim": (self.height + MARGIN, -MARGIN)}
        axes = figure.add_axes((0, 0, 1, 1), **ends)
        axes.set_axis_off()
        figure.set_label(self.label)
        families = known_fonts()
        for place, mark in enumerate(self.marks):
            if isinstance(mark, Text):
                _figure_text(axes, mark, families, place)
            else:
                axes.add_patch(_figure_shape(_as_shape(mark), place))
        return figure


def known_fonts() -> list[str]:
    """Those of FONTS that Matplotlib finds here, in order."""
    from matplotlib import font_manager

    here = set(font_manager.get_font_names())
    return [name for name in FONTS if name in here] or ["sans-serif"]


def _as_shape(mark: Shape | Boxes) -> Shape:
    if isinstance(mark, Shape):
        return mark
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float) * mark.size
    boxes = list(mark.corners[:, None] + corners)
    return Shape(boxes, fill=mark.fill, opacity=mark.opacity, closed=True)


def _svg_mark(mark: Shape | Boxes | Text) -> str:
    if isinstance(mark, Text):
        turn = f' transform="rotate({mark.turn:g} {mark.x:.1f} {mark.y:.1f})"' if mark.turn else ""
        bold = ' font-weight="700"' if mark.bold else ""
        place = f'x="{mark.x:.1f}" y="{mark.y:.1f}" text-anchor="{mark.anchor}"'
        look = f'font-size="{mark.size:g}" fill="{COLOURS[mark.colour][0]}"'
        return f"<text {place} {look}{bold}{turn}>{html.escape(mark.words)}</text>"
    if isinstance(mark, Boxes):
        w, h = mark.size
        steps = f"h{w:.2f}v{h:.2f}h{-w:.2f}z"
        path = "".join(f"M{x:.1f} {y:.1f}{steps}" for x, y in mark.corners.tolist())
        look = f'fill="{COLOURS[mark.fill][0]}" opacity="{mark.opacity:g}"'
        return f'<path d="{path}" {look} shape-rendering="crispEdges"/>'
    look = f'fill="{COLOURS[mark.fill][0]}"'
    if mark.stroke != "none":
        look += f' stroke="{COLOURS[mark.stroke][0]}" stroke-width="{mark.width:g}"'
    if DASH[mark.dash]:
        look += f' stroke-dasharray="{" ".join(map(str, DASH[mark.dash]))}"'
    if mark.opacity != 1:
        look += f' opacity="{mark.opacity:g}"'
    title = f"<title>{html.escape(mark.title)}</title>" if mark.title else ""
    return f'<path d="{_path(mark.points, mark.closed)}" {look}>{title}</path>'


def _path(polylines: list[np.ndarray], closed: bool) -> str:
    end = "Z" if closed else ""
    return "".join(
        "M" + "L".join([f"{x:.1f} {y:.1f}" for x, y in line.tolist()]) + end for line in polylines
    )


def _svg_pick(pick: Pick) -> str:
    x, y, w, h = pick.box
    role = (
        "button" if pick.checked is None else f'switch" aria-checked="{str(pick.checked).lower()}'
    )
    label = html.escape(pick.label, quote=True)
    name = f'data-pick="{pick.name}" tabindex="0" role="{role}" aria-label="{label}"'
    place = f'x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="2"'
    return f'<rect {name} {place} fill="transparent"><title>{label}</title></rect>'


def _figure_shape(mark: Shape, place: int) -> Any:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    paths = []
    for line in mark.points:
        if mark.closed:
            paths.append(Path(np.vstack([line, line[:1]]), closed=True))
        else:
            paths.append(Path(line))
    dash = DASH[mark.dash]
    return PathPatch(
        Path.make_compound_path(*paths),
        facecolor=COLOURS[mark.fill][1],
        edgecolor=COLOURS[mark.stroke][1],
        linewidth=mark.width * 0.72,  # pixels to points at 100 dots an inch
        linestyle=(0, tuple(d / max(mark.width, 1e-9) for d in dash)) if dash else "solid",
        alpha=mark.opacity,
        fill=mark.fill != "none",
        zorder=place,
    )


def _figure_text(axes: Any, mark: Text, families: list[str], place: int) -> None:
    align = {"start": "left", "middle": "center", "end": "right"}[mark.anchor]
    axes.text(
        *(mark.x, mark.y, mark.words.replace("$", r"\$")),
        fontsize=mark.size * 0.72,
        color=COLOURS[mark.colour][1],
        ha=align,
        va="baseline",
        rotation=-mark.turn,
        rotation_mode="anchor",
        weight="bold" if mark.bold else "normal",
        family=families,
        zorder=place,
    )
