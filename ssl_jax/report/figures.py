"""Drawings of a run: arrays in, one matplotlib `Figure` out, all in one style.

An inch of a figure is meant to be 100 CSS pixels of a page and `png` renders it at twice that, so
that figures stay crisp on dense screens. Only the object-oriented API is used: no pyplot state and
no window, safe in any process. Series are told apart by the colour-blind safe palette of Okabe and
Ito (2008), magnitudes by colour maps that also order correctly in grey.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter
from PIL import Image

from ssl_jax.runtime import files

INK, MUTED, GRID = "#1f2933", "#66717e", "#e4e8ec"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
ENCODERS = ("#0072b2", "#8b97a4", "#c6cdd4")  # the encoder in question, then its baselines

WIDTH = 4.9  # inches; two such figures stand side by side on the page
HEIGHT = 2.75
MOST_TOGETHER = 4  # labels whose dots are on one line
PIXELS_AN_INCH = 200
AGENT_STEPS = "agent steps of one agent"  # what `step` counts where games are played

_styled = matplotlib.rc_context(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": MUTED,
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.labelsize": 9,
        "axes.linewidth": 0.7,
        "axes.prop_cycle": matplotlib.cycler(color=SERIES),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "figure.facecolor": "white",
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
        "font.size": 9,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "image.cmap": "viridis",
        "legend.borderaxespad": 0.2,
        "legend.columnspacing": 1.4,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "legend.handlelength": 1.3,
        "legend.labelcolor": INK,
        "lines.linewidth": 1.6,
        "text.color": INK,
        "text.parse_math": False,  # labels come from data; a dollar sign is a dollar sign
        "xtick.color": MUTED,
        "xtick.labelcolor": INK,
        "xtick.labelsize": 8.5,
        "xtick.major.size": 3,
        "ytick.color": MUTED,
        "ytick.labelcolor": INK,
        "ytick.labelsize": 8.5,
        "ytick.major.size": 0,
    }
)


def png(figure: Figure) -> bytes:
    """PNG bytes of `figure`, two pixels for each CSS pixel that it should take on a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS_AN_INCH)
    return buffer.getvalue()


def save(path: Path, figure: Figure) -> bytes:
    """Writes `figure` to a PNG file, whole or not at all, and returns its bytes."""
    data = png(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.writing(path) as file:
        file.write(data)
    return data


@_styled
def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    ylabel: str,
    xlabel: str = "training step",
    percent: bool = False,
    log: bool = False,
    reference: tuple[str, float] | None = None,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Numbers over training steps, or over another count.

    A long series is drawn twice: as given, in pale, and its moving average on top.

    Args:
      series: label -> (steps [T], values [T]).
      ylabel: name and unit of the values.
      xlabel: what is counted on the other axis.
      percent: the values are shares between 0 and 1, to be read as percentages from 0 up.
      log: the values are drawn on a logarithmic scale, which shows those above 0 only.
      reference: (label, value) of a dashed horizontal line, such as chance.
      bands: some of the labels -> (steps [T], lower ends [T], upper ends [T]) around their lines.
      width: of the figure, in inches.
    """
    figure = Figure(figsize=(width, HEIGHT))
    axes = figure.add_subplot()
    for (label, (steps, values)), (color, dashes) in zip(series.items(), _looks(len(series)), strict=True):
        window = len(values) // 25
        noisy = window > 1
        marker = "o" if len(values) < 15 else None
        if label in (bands or {}):
            axes.fill_between(*bands[label], color=color, alpha=0.16, linewidth=0)
        axes.plot(
            steps,
            values,
            color=color,
            linestyle=dashes,
            alpha=0.28 if noisy else 1.0,
            linewidth=0.9 if noisy else None,
            label=None if noisy else label,
            marker=marker,
            markersize=3.5,
        )
        if noisy:
            axes.plot(steps, _moving_average(values, window), color=color, linestyle=dashes, label=label)
    if reference is not None:
        axes.axhline(reference[1], color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), label=reference[0])
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
        axes.set_ylim(bottom=0)
    if log:
        axes.set_yscale("log")
    _steps_axis(axes, xlabel)
    axes.set_ylabel(ylabel)
    if len(series) > 1 or reference is not None:
        _legend_above(axes)
    return figure


@_styled
def returns(
    scores: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]] | None = None,
    seeds: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
    references: Mapping[str, float] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Scores of evaluations over training.

    Args:
      scores: label -> (agent steps [T], mean scores [T]).
      bands: some of the labels -> (agent steps [T], lower ends [T], upper ends [T]) of an interval.
      seeds: (agent steps [T], scores [T]) of single agents, drawn thin and without a label.
      references: label -> score of a dashed horizontal line. One that is further from the scores than
        they are from each other would flatten them, and is left out.
      width: of the figure, in inches.
    """
    figure = Figure(figsize=(width, HEIGHT))
    axes = figure.add_subplot()
    for steps, values in seeds:
        axes.plot(steps, values, color=MUTED, alpha=0.45, linewidth=0.8)
    for (label, (steps, values)), (color, dashes) in zip(scores.items(), _looks(len(scores)), strict=True):
        if label in (bands or {}):
            axes.fill_between(*bands[label], color=color, alpha=0.16, linewidth=0)
        marker = "o" if len(values) < 15 else None
        axes.plot(steps, values, color=color, linestyle=dashes, marker=marker, markersize=3.5, label=label)
    lines = np.concatenate([values for _, values in (*scores.values(), *seeds)])
    low, high = axes.dataLim.intervaly
    # An interval over two or three seeds can be many times as wide as all scores together.
    farthest = 2 * lines.min() - lines.max(), 2 * lines.max() - lines.min()
    if lines.min() < lines.max() and (low < farthest[0] or high > farthest[1]):
        low, high = max(low, farthest[0]), min(high, farthest[1])
        axes.set_ylim(low, high)
    for name, value in (references or {}).items():
        if 2 * low - high <= value <= 2 * high - low:
            axes.axhline(value, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)))
            beside = {"transform": axes.get_yaxis_transform(), "verticalalignment": "center"}
            axes.text(1.01, value, name, color=MUTED, fontsize=8, **beside)
    _steps_axis(axes, AGENT_STEPS)
    axes.set_ylabel("score")
    if len(scores) > 1:
        _legend_above(axes)
    return figure


@_styled
def tiles(
    images: np.ndarray,
    tiles: np.ndarray,
    labels: Sequence[int],
    permutations: np.ndarray,
    *,
    grid: tuple[int, int],
) -> Figure:
    """Puzzles as the network saw them beside their images; a tile's number is its true place.

    Args:
      images: uint8 [n, H, W, 3], the images before cutting.
      tiles: [n, m, h, w, 3], tiles in the shuffled order and in any scale: brightness and contrast
        are stretched per puzzle for display.
      labels: int [n], index of each puzzle's permutation, which is the class to be named.
      permutations: int [N, m]; place i of a puzzle shows tile `permutations[label, i]`.
      grid: rows and columns of a puzzle; m is their product.
    """
    images, tiles = np.asarray(images), np.asarray(tiles, np.float32)
    gap = max(1, tiles.shape[2] // 16)
    puzzles = [_mosaic(_stretch(puzzle), grid[1], gap=gap) for puzzle in tiles]
    aspects = [images.shape[2] / images.shape[1], puzzles[0].shape[1] / puzzles[0].shape[0]]
    pairs = min(3, len(tiles))
    rows = -(-len(tiles) // pairs)
    inner, outer, above = 0.07, 0.3, 0.26  # inches in a pair, between pairs, above for the title
    fixed = pairs * inner + (pairs - 1) * outer
    height = min(1.7, (2.05 * WIDTH - fixed) / (pairs * sum(aspects)))
    size = np.array([pairs * sum(aspects) * height + fixed, rows * (height + above)])
    figure = Figure(figsize=size, layout="none")
    widths = np.array(aspects) * height
    for i, label in enumerate(labels):
        corner = (
            i % pairs * (widths.sum() + inner + outer),
            size[1] - (i // pairs + 1) * (height + above),
        )
        original = figure.add_axes((*corner / size, *(widths[0], height) / size))
        puzzle = figure.add_axes(
            (*(corner + np.array([widths[0] + inner, 0])) / size, *(widths[1], height) / size)
        )
        permutation = [int(tile) for tile in permutations[label]]
        for ax, picture, numbers in (
            (original, images[i], range(grid[0] * grid[1])),
            (puzzle, puzzles[i], permutation),
        ):
            ax.set_axis_off()
            ax.imshow(picture, aspect="auto")
            _number_tiles(ax, numbers, grid)
        _draw_cuts(original, grid)
        order = textwrap.shorten(" ".join(map(str, permutation)), width=26, placeholder=" …")
        puzzle.set_title(f"class {label}: {order}", fontsize=8.5, pad=3)
    return figure


@_styled
def parts(parts: np.ndarray, labels: np.ndarray) -> Figure:
    """What the network saw of some examples, one a row, with the answer beside it.

    Args:
      parts: float [n, m, h, w, 3] in the order shown; each row's brightness is stretched for display.
      labels: int, the class [n], or the order of the parts [n, m], whose numbers then stand above them.
    """
    parts, labels = np.asarray(parts), np.asarray(labels)
    n, m, height, width = parts.shape[:4]
    inch = WIDTH / max(m, 5)  # of a part
    figure = Figure(figsize=(inch * m + 1.2, n * (inch * height / width + 0.3)))
    for axes, row, label in zip(figure.subplots(n, 1, squeeze=False)[:, 0], parts, labels, strict=True):
        axes.imshow(_mosaic(_stretch(row), m, gap=4), interpolation="nearest")
        axes.set_axis_off()
        if labels.ndim == 1:
            axes.set_title(f"class {label}")
        else:
            for i, number in enumerate(label):
                axes.text(i * (width + 4) + width / 2, -3, str(number), ha="center", va="bottom")
    return figure


@_styled
def views(images: np.ndarray, views: np.ndarray, titles: Sequence[str]) -> Figure:
    """Frames as they are stored, and beside each what a network saw of it.

    Args:
      images: uint8 [n, H, W, 3].
      views: float [n, m, h, w, 3], in any scale: each row is stretched for display.
      titles: [n], what is written above each.
    """
    height, width = images.shape[1:3]
    rows = []
    for image, seen in zip(images, views, strict=True):
        seen = [_resized(view, (height, width)) for view in _stretch(np.asarray(seen, np.float32))]
        rows.append(_mosaic(np.stack([image / 255, *seen]), len(seen) + 1, gap=4))
    columns = min(2, len(rows))
    lines = -(-len(rows) // columns)
    inch = 2.05 * WIDTH / columns  # of a row
    aspect = rows[0].shape[0] / rows[0].shape[1]
    figure = Figure(figsize=(2.05 * WIDTH, lines * (inch * aspect + 0.27)))
    for axes in (places := figure.subplots(lines, columns, squeeze=False).ravel()):
        axes.set_axis_off()
    for axes, row, title in zip(places, rows, titles, strict=False):
        axes.imshow(row, interpolation="nearest")
        axes.set_title(title, fontsize=8.5, pad=3)
    return figure


@_styled
def attributions(images: np.ndarray, maps: Mapping[str, np.ndarray], titles: Sequence[str]) -> Figure:
    """Pictures, one a row, and over each of them in grey how much every pixel matters to an answer.

    The warmest colour is the 99th percentile of a map; what matters less than a quarter of that is grey.

    Args:
      images: uint8 [n, H, W, 3].
      maps: kind -> float [n, H, W], not negative.
      titles: [n], what is written beside each picture.
    """
    count, height, width = images.shape[:3]
    inch = 2.05 * WIDTH / (len(maps) + 1)
    figure = Figure(figsize=(2.05 * WIDTH, count * inch * height / width + 0.27))
    grid = figure.subplots(count, len(maps) + 1, squeeze=False)
    for number, (row, image, title) in enumerate(zip(grid, images, titles, strict=True)):
        for axes in row:
            axes.set_axis_off()
        row[0].imshow(image, interpolation="nearest")
        row[0].text(0.02, 0.02, title, transform=row[0].transAxes, fontsize=7.5, va="bottom",
                    bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5})  # fmt: skip
        grey = image.mean(-1) / 255
        for axes, (kind, values) in zip(row[1:], maps.items(), strict=True):
            heat = np.clip(values[number] / max(np.percentile(values[number], 99), 1e-30), 0, 1)
            axes.imshow(0.25 + 0.5 * grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=np.clip(1.33 * heat - 0.33, 0, 1))
            if number == 0:
                axes.set_title(kind, fontsize=8.5, pad=3)
    return figure


@_styled
def calibration(probability: Sequence[float], share: Sequence[float], count: Sequence[int]) -> Figure:
    """What came true of probabilities, bin by bin.

    Args:
      probability: [K], the mean of each bin.
      share: [K], how often it came true.
      count: [K], examples in the bin; the area of its point.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), label="as said")
    area = 20 + 180 * np.asarray(count) / max(count)
    axes.plot(probability, share, color=SERIES[0], linewidth=1.0)
    axes.scatter(probability, share, s=area, color=SERIES[0], alpha=0.75, linewidths=0, label="frames")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("probability of FAKE")
    axes.set_ylabel("share that is FAKE")
    return figure


@_styled
def stacks(s: np.ndarray, inputs: np.ndarray | None = None, labels: Sequence[int] | None = None) -> Figure:
    """Frame stacks, one a row, beside what the auxiliary task made of them.

    Args:
      s: uint8 [n, H, W, T], the newest frame last. After the frames comes how far each pixel moved
        between its darkest and its brightest, in which all that moves is bright.
      inputs: the auxiliary task's inputs, of the same shape; None if there is no task.
      labels: int [n], the class to be named for each input.
    """
    s = np.asarray(s)
    n, height, width, frames = s.shape
    motion = s.max(-1, keepdims=True) - s.min(-1, keepdims=True)
    blocks = [np.concatenate([s, motion], -1)] + ([] if inputs is None else [np.asarray(inputs)])
    columns = [block.shape[-1] for block in blocks]
    inch = 2.05 * WIDTH / (2 * frames + 1.6)  # of a frame
    figure = Figure(figsize=(inch * (sum(columns) + 0.6), n * (inch * height / width + 0.27)))
    rows = figure.subplots(n, len(blocks), squeeze=False, width_ratios=columns)
    names = [f"t−{age}" for age in range(frames - 1, 0, -1)] + ["t", "motion"]
    for i, row in enumerate(rows):
        for axes, block in zip(row, blocks, strict=True):
            strip = _mosaic(np.moveaxis(block[i], -1, 0)[..., None] / 255, block.shape[-1], gap=4)
            axes.imshow(strip[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
        if i == 0:
            for k, name in enumerate(names):
                row[0].text(k * (width + 4) + width / 2, -3, name, ha="center", va="bottom", fontsize=8.5)
        if inputs is not None and labels is not None:
            row[1].set_title(f"class {int(labels[i])}", fontsize=8.5, pad=3)
    return figure


def gif(frames: np.ndarray, frames_per_second: float, scale: int = 1) -> bytes:
    """An animated GIF that plays forever.

    Frames that are equal become one that is shown as long as all of them.

    Args:
      frames: uint8 [F, H, W], grey, or [F, H, W, 3]; at least one.
      frames_per_second: speed. A GIF counts hundredths of a second, so single frames are shown a
        little shorter or longer, such that the whole is right.
      scale: pixels of the GIF, across and down, for a pixel of a frame.
    """
    some = np.concatenate(frames[:: -(-len(frames) // 16)])  # up to 16 frames decide the palette
    palette = Image.fromarray(some).convert("RGB").quantize(64)
    size = (frames.shape[2] * scale, frames.shape[1] * scale)
    pictures = [
        Image.fromarray(frame)
        .convert("RGB")
        .quantize(palette=palette, dither=Image.Dither.NONE)
        .resize(size, Image.Resampling.NEAREST)
        for frame in frames
    ]
    ends = np.round(np.arange(1, len(frames) + 1) * 100 / frames_per_second).astype(int)
    durations = (10 * np.diff(ends, prepend=0)).tolist()  # milliseconds
    buffer = io.BytesIO()
    first, *others = pictures
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return buffer.getvalue()


@_styled
def probability_heat_map(steps: Sequence[int], group_probability: np.ndarray) -> Figure:
    """Which group of permutations the policy drew from, over time.

    Args:
      steps: int [T], the steps of the policy's evaluations; each holds until the next.
      group_probability: [T, K], share of the samples that group k was drawn for; group 0 is the
        hardest. White is the share of a uniform draw of groups.
    """
    probability = np.asarray(group_probability)
    groups = probability.shape[1]
    figure = Figure(figsize=(WIDTH, 3.1))
    axes = figure.add_subplot()
    uniform, highest = 1 / groups, max(probability.max(), 2 / groups)
    mesh = axes.pcolormesh(
        _edges(steps),
        np.arange(groups + 1) - 0.5,
        probability.T,
        norm=TwoSlopeNorm(uniform, vmin=0, vmax=highest),
        cmap="PuOr_r",
    )
    ticks = np.unique(np.linspace(0, groups - 1, min(groups, 10)).round().astype(int))
    names = {0: "hardest  0", groups - 1: f"easiest  {groups - 1}"}
    axes.set_yticks(ticks, [names.get(int(k), str(k)) for k in ticks] if groups > 1 else ["0"])
    axes.set_ylabel("group of permutations")
    axes.grid(False)
    _steps_axis(axes)
    bar = _color_bar(figure, mesh, "share of the samples")
    middle = (uniform + highest) / 2
    shares = {0: "0%", uniform: f"uniform\n{uniform:.0%}"}
    shares |= {share: f"{share:.0%}" for share in (middle, highest)}
    bar.set_ticks(list(shares), labels=list(shares.values()))
    return figure


@_styled
def permutation_heat_map(steps: Sequence[int], accuracy: np.ndarray) -> Figure:
    """Accuracy of every permutation over time, the one that is easiest in the end on top.

    Args:
      steps: int [T], the steps of the evaluations; each holds until the next.
      accuracy: [T, P], between 0 and 1.
    """
    accuracy = np.asarray(accuracy)
    order = np.argsort(accuracy[-1], kind="stable")
    figure = Figure(figsize=(WIDTH, 3.1))
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(_edges(steps), np.arange(len(order) + 1), accuracy[:, order].T, vmin=0, vmax=1)
    axes.set_ylabel("permutations, hardest to easiest")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(False)
    _steps_axis(axes)
    _color_bar(figure, mesh, "accuracy")
    return figure


@_styled
def permutation_accuracy(accuracy: Sequence[float], *, group: Sequence[int] | None = None) -> Figure:
    """Accuracy of every permutation, sorted, beside what guessing would give.

    Args:
      accuracy: [P], between 0 and 1.
      group: int [P], colours each permutation by the group it was in; group 0 is the hardest.
    """
    accuracy = np.asarray(accuracy, float)  # None becomes NaN
    order = np.argsort(accuracy, kind="stable")
    rank = np.arange(1, len(order) + 1)
    figure = Figure(figsize=(2.05 * WIDTH, HEIGHT))
    axes = figure.add_subplot()
    colors: object = SERIES[0]
    if group is not None:
        groups = int(np.max(group)) + 1
        norm = BoundaryNorm(np.arange(groups + 1) - 0.5, ncolors=groups)
        scale = ScalarMappable(norm, matplotlib.colormaps["viridis"].resampled(groups))
        colors = scale.to_rgba(np.asarray(group)[order])
        ticks = np.unique(np.linspace(0, groups - 1, min(groups, 10)).round().astype(int))
        bar = figure.colorbar(scale, ax=axes, pad=0.012, aspect=18, ticks=ticks)
        bar.outline.set_visible(False)
        bar.ax.tick_params(which="both", size=0)
        bar.set_label("group, 0 is the hardest")
    width = 0.86 if len(order) <= 200 else 1.0
    axes.bar(rank, accuracy[order], width=width, color=colors, linewidth=0)
    lines = (
        ("mean", np.nanmean(accuracy), INK, "-"),
        ("chance", 1 / len(order), MUTED, (0, (4, 3))),
    )
    for name, value, color, style in lines:
        text = f"{name} {value:.1%}"
        axes.axhline(value, color=color, linewidth=1.1, linestyle=style, label=text)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    axes.xaxis.grid(False)
    axes.margins(x=0.005)
    axes.set_xlabel("permutations, hardest to easiest")
    axes.set_ylabel("accuracy")
    _legend_above(axes)
    return figure


@_styled
def filters(kernel: np.ndarray) -> Figure:
    """The filters of a convolution, each scaled by its own largest weight; zero is mid-grey.

    Args:
      kernel: float [h, w, c, n]. Three input channels are drawn as colours; any other number as c
        grey pictures side by side for each filter.
    """
    kernel = np.asarray(kernel)
    height, _, channels, count = kernel.shape
    largest = np.maximum(np.abs(kernel).max(axis=(0, 1, 2)), 1e-12)
    pictures = 0.5 + 0.5 * np.transpose(kernel / largest, (3, 0, 1, 2))  # [n, h, w, c]
    pictures = pictures.repeat(magnify := max(1, 84 // height), axis=1).repeat(magnify, axis=2)
    if channels != 3:
        parts = [pictures[..., [c]].repeat(3, axis=-1) for c in range(channels)]
        thin = np.ones((count, pictures.shape[1], 2, 3))
        joined = [part for pair in zip(parts, [thin] * channels, strict=True) for part in pair]
        pictures = np.concatenate(joined[:-1], axis=2)
    fitting = max(1, int(2.05 * WIDTH * PIXELS_AN_INCH) // (pictures.shape[2] + 10))
    rows = -(-count // fitting)
    mosaic = _mosaic(pictures, -(-count // rows), gap=10)
    # One pixel of the mosaic is one pixel of the PNG, so that nothing is resampled.
    figure = Figure(figsize=np.array(mosaic.shape[1::-1]) / PIXELS_AN_INCH, layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(mosaic, interpolation="nearest")
    return figure


@_styled
def probe_bars(scores: Mapping[str, Mapping[str, float]], *, xlabel: str) -> Figure:
    """One bar for each encoder in each category, to compare an encoder with its baselines.

    Args:
      scores: encoder -> category -> score between 0 and 1; the encoder in question comes first and
        names the categories. A score which an encoder lacks leaves a gap.
      xlabel: name of the score.
    """
    categories = list(next(iter(scores.values())))
    places = np.arange(len(categories))
    thickness = 0.8 / len(scores)
    figure = Figure(figsize=(WIDTH, 0.85 + max(0.2, 0.13 * len(scores)) * len(categories)))
    axes = figure.add_subplot()
    for i, (encoder, score) in enumerate(scores.items()):
        values = [score.get(category, np.nan) for category in categories]
        axes.barh(
            places + (i - (len(scores) - 1) / 2) * thickness,
            values,
            height=thickness * 0.9,
            color=ENCODERS[i] if i < len(ENCODERS) else SERIES[i % len(SERIES)],
            label=encoder,
        )
    axes.set_yticks(places, categories)
    axes.set_ylim(len(categories) - 0.45, -0.55)
    axes.set_xlim(0, 1)
    axes.yaxis.grid(False)
    axes.set_xlabel(xlabel)
    _legend_above(axes)
    return figure


@_styled
def seeds(
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    xlabel: str,
    percent: bool = False,
    reference: tuple[str, float] | None = None,
) -> Figure:
    """Scores of single seeds as dots, around their mean as a stroke.

    A few labels share the line of their row, and have a legend; more have a line each.

    Args:
      scores: row -> label -> one score a seed; labels have the same colour in all rows.
      xlabel: name of the score.
      percent: scores are shares between 0 and 1, to be read as percentages.
      reference: (label, value) of a dashed vertical line, such as chance.
    """
    labels = list(dict.fromkeys(label for row in scores.values() for label in row))
    lined_up = len(labels) > MOST_TOGETHER
    apart = 0.8 if lined_up else 0.8 / max(1, len(labels))
    names: list[str] = []  # of the lines, from the top
    places: dict[tuple[str, str], tuple[int, float]] = {}  # row and label -> the line, and how far from it
    for row, of in scores.items():
        if not lined_up:
            shifts = {label: (i - (len(labels) - 1) / 2) * apart for i, label in enumerate(labels)}
            places |= {(row, label): (len(names), shifts[label]) for label in of}
            names.append(row)
            continue
        names += [row] if len(scores) > 1 else []
        places |= {(row, label): (len(names) + i, 0.0) for i, label in enumerate(of)}
        names += of
    ticks = [textwrap.fill(name, 34) for name in names]
    tall = np.array([max(1, 2 / 3 * (tick.count("\n") + 1)) for tick in ticks])  # each line, by its name
    middles = np.cumsum(tall) - tall / 2
    high = 0.21 if lined_up else max(0.3, 0.16 * len(labels))
    figure = Figure(figsize=(WIDTH, 0.85 + high * tall.sum()))
    axes = figure.add_subplot()
    for i, label in enumerate(labels):
        drawn = [
            (middles[line] + shift, scores[row][label])
            for (row, own), (line, shift) in places.items()
            if own == label
        ]
        color, marker = SERIES[i % len(SERIES)], "os^Dv"[i // len(SERIES) % 5]
        axes.scatter(
            *np.reshape([(x, y) for y, values in drawn for x in values], (-1, 2)).T,
            s=14,
            linewidths=0,
            color=color,
            alpha=0.55,
            marker=marker,
            label=None if lined_up else label,
        )
        x, y = np.reshape([(np.mean(values), y) for y, values in drawn if values], (-1, 2)).T
        axes.vlines(x, y - 0.45 * apart, y + 0.45 * apart, color=color, linewidth=2)
    if reference is not None:
        axes.axvline(reference[1], color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), label=reference[0])
    axes.set_yticks(middles, ticks)
    axes.set_ylim(tall.sum() + 0.05, -0.05)
    axes.yaxis.grid(False)
    if percent:
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.set_xlabel(xlabel)
    if axes.get_legend_handles_labels()[1]:
        _legend_above(axes)
    return figure


@_styled
def scatter(points: np.ndarray, label: np.ndarray, names: Sequence[str] = ()) -> Figure:
    """Points of the plane in the colours of their classes, for maps whose axes mean nothing.

    Args:
      points: float [N, 2].
      label: int [N], class of each.
      names: of the classes; without them, classes are called by their numbers.
    """
    classes = np.unique(label)
    figure = Figure(figsize=(WIDTH, WIDTH * 0.8))
    axes = figure.add_subplot()
    for i, number in enumerate(classes):
        chosen = label == number
        axes.scatter(
            *points[chosen].T,
            s=7,
            linewidths=0,
            color=SERIES[i % len(SERIES)],
            marker="os^Dv"[i // len(SERIES) % 5],
            label=names[number] if len(names) else str(number),
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False, markerscale=2)
    return figure


def _looks(count: int) -> list[tuple[str, str]]:
    """Colour and style of each line; the style changes once the colours are used up."""
    styles = ("-", "--", ":", "-.")
    return [(SERIES[i % len(SERIES)], styles[i // len(SERIES) % len(styles)]) for i in range(count)]


def _steps_axis(axes: Axes, xlabel: str = "training step") -> None:
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _legend_above(axes: Axes) -> None:
    """A legend on top; more than two lines of it make the figure higher, not the axes lower."""
    labels, figure = axes.get_legend_handles_labels()[1], axes.figure
    fitting = int(14 * figure.get_figwidth()) // (max(map(len, labels)) + 5)  # 14 characters an inch
    columns = min(4, max(1, fitting))
    figure.set_figheight(figure.get_figheight() + 0.19 * max(0, -(-len(labels) // columns) - 2))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns)


def _color_bar(figure: Figure, mesh: QuadMesh, label: str) -> Colorbar:
    bar = figure.colorbar(mesh, pad=0.02, aspect=22, format=PercentFormatter(xmax=1.0))
    bar.outline.set_visible(False)
    bar.ax.tick_params(size=0)
    bar.set_label(label)
    return bar


def _moving_average(values: Sequence[float], window: int) -> np.ndarray:
    """Centred mean over `window` values, over fewer at the ends; [T] -> [T]."""
    ones = np.ones(window)
    total = np.convolve(np.asarray(values, float), ones, mode="same")
    return total / np.convolve(np.ones(len(values)), ones, mode="same")


def _edges(steps: Sequence[int]) -> np.ndarray:
    """[T] -> [T + 1]: what begins at a step lasts until the next, the last for the median time."""
    steps = np.asarray(steps, float)
    return np.append(steps, steps[-1] + (np.median(np.diff(steps)) if len(steps) > 1 else 1))


def _stretch(puzzle: np.ndarray) -> np.ndarray:
    """Any scale -> [0, 1], cutting the outermost percent of the values at either end."""
    low, high = np.percentile(puzzle, (1, 99))
    return np.clip((puzzle - low) / max(high - low, 1e-6), 0, 1)


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w, 3] in [0, 1] at another size, without inventing colours."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, picture.shape, strict=False))
    return picture[rows][:, columns]


def _mosaic(pictures: np.ndarray, columns: int, *, gap: int) -> np.ndarray:
    """[n, h, w, 3] in [0, 1] -> one picture, row by row, with white gaps of `gap` pixels."""
    count, height, width, channels = pictures.shape
    rows = -(-count // columns)
    mosaic = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels))
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        mosaic[top : top + height, left : left + width] = picture
    return mosaic


def _draw_cuts(axes: Axes, grid: tuple[int, int]) -> None:
    rows, columns = grid
    lines = [((0, 1), (row / rows,) * 2) for row in range(1, rows)]
    lines += [((column / columns,) * 2, (0, 1)) for column in range(1, columns)]
    for x, y in lines:
        axes.plot(x, y, color="white", alpha=0.6, linewidth=0.6, transform=axes.transAxes)


def _number_tiles(axes: Axes, numbers: Sequence[int], grid: tuple[int, int]) -> None:
    outline = [patheffects.withStroke(linewidth=2, foreground="black", alpha=0.75)]
    for i, number in enumerate(numbers):
        axes.text(
            (i % grid[1] + 0.06) / grid[1],
            1 - (i // grid[1] + 0.07) / grid[0],
            str(number),
            transform=axes.transAxes,
            color="white",
            fontsize=7.5,
            fontweight="bold",
            verticalalignment="top",
            path_effects=outline,
        )
