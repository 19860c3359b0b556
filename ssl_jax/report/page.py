"""Builds `report.html`, the page about one run, from the run's work directory and nothing else.

Here is what every page shares: reading a run, the pieces of HTML and the style. What a page says is in
`pretraining`, `judging`, `playing` and `classifying`, one module a kind of experiment; `comparison` and
`sweep` are about several runs.

The page is one file: pictures are inlined, there are no scripts, and nothing is loaded from
anywhere, so that it can be mailed, archived and opened years later. A run that has not finished
gets a page of what is there.
"""

import base64
import dataclasses
import html
import io
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave

from ssl_jax.report import figures
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import files, metrics
from ssl_jax.runtime.errors import InputError

_HEAVY = 300_000  # bytes of a PNG


@dataclasses.dataclass(frozen=True)
class Run:
    """What a work directory holds.

    Attributes:
      workdir: the directory.
      config: nested config of the run.
      metrics: lines of metrics.jsonl, each with `step` and named numbers.
      selection: lines of selection.jsonl, one a look of a player; each has `step`, `task` and, for its P
        classes, `accuracy` [P], `probability` [P] and `group` [P]. Empty where no player looks.
      results: results.json; empty while the run has not finished.
    """

    workdir: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    selection: list[dict[str, Any]]
    results: dict[str, Any]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks of a pre-training, as its config has them."""
        return [name for name, part in self.config.items() if isinstance(part, Mapping) and "puzzle" in part]

    def choices(self, task: str) -> "Choices | None":
        """What the player of a task saw and chose; None if it never looked."""
        lines = [line for line in self.selection if line["task"] == task]
        return Choices(lines) if lines else None

    @property
    def experiment(self) -> str:
        """Name of the experiment that made the run, such as `dueling_dqn`."""
        return self.config.get("experiment", "pretrain")

    def figure_path(self, name: str) -> Path:
        """Where the figure of that name is, or will be."""
        return self.workdir / "figures" / f"{name}.png"

    def part(self, name: str) -> dict[str, Any]:
        """A part of the results; empty where the run has none."""
        return self.results.get(name) or {}

    def series(self, name: str, over: str = "step") -> tuple[list[float], list[float]]:
        """Values of one metric over the steps, or over another metric that was logged with it.

        A step logged again after a resume counts once.

        Returns:
          Abscissae and values, in the order of the steps; numbers that are missing or NaN are left out.
        """
        points = {
            line["step"]: (line[over], line[name])
            for line in self.metrics
            if is_finite(line.get(over)) and is_finite(line.get(name))
        }
        ordered = [points[step] for step in sorted(points)]
        return [x for x, _ in ordered], [y for _, y in ordered]

    def last(self, name: str) -> float | None:
        """The final value of a metric, or the newest one if the run has not finished."""
        final = self.part("final").get(name)
        values = self.series(name)[1]
        return final if is_finite(final) else (values[-1] if values else None)


class Choices:
    """What a player saw and chose at T evaluations of P classes.

    Attributes:
      steps: int [T], of the evaluations.
      accuracy: float [T, P], of each class on the selection slice.
      group: int [T, P], of each class; group 0 is the hardest.
      group_probability: float [T, K], share of the samples that each group was drawn for.
    """

    def __init__(self, lines: list[dict[str, Any]]):
        self.steps = np.array([line["step"] for line in lines])
        self.accuracy = np.array([line["accuracy"] for line in lines], float)
        self.group = np.array([line["group"] for line in lines], int)
        groups = int(self.group.max()) + 1
        self.group_probability = np.stack(
            [np.bincount(line["group"], weights=line["probability"], minlength=groups) for line in lines]
        )


def read(workdir: str | Path) -> Run:
    """Reads a work directory.

    Raises:
      InputError: there is no such directory, it holds no run, or one of its files is damaged.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"There is no work directory '{workdir}'; give the --workdir of a run.")
    if not files.exists(workdir / config_lib.CONFIG_FILE):
        raise InputError(
            f"'{workdir}' is not the work directory of a run: it has no config.json; give the "
            "--workdir of a run."
        )
    run = Run(
        workdir=workdir,
        config=_read_object(workdir / config_lib.CONFIG_FILE),
        metrics=metrics.read(workdir / metrics.METRICS_FILE),
        selection=metrics.read(workdir / metrics.SELECTION_FILE),
        results=_read_object(workdir / config_lib.RESULTS_FILE),
    )
    for number, line in enumerate(run.metrics, 1):
        if not is_finite(line.get("step")):
            raise InputError(f"Line {number} of '{workdir / metrics.METRICS_FILE}' should have a 'step'.")
    sizes = {}
    for number, line in enumerate(run.selection, 1):
        rows = [line.get(name) for name in ("accuracy", "probability", "group")]
        lengths = {len(row) if isinstance(row, list) else 0 for row in rows}
        wanted = sizes.setdefault(line.get("task"), max(lengths))
        if lengths != {wanted} or not wanted or "task" not in line or not is_finite(line.get("step")):
            raise InputError(
                f"Line {number} of '{workdir / metrics.SELECTION_FILE}' should have a 'step', a 'task' and "
                "lists 'accuracy', 'probability' and 'group', each with one entry a class."
            )
    return run


def build(workdir: str | Path) -> Path:
    """Writes `report.html`, and the figures in it as `figures/*.png`, into a work directory.

    Files appear whole or not at all. Works while the run goes on.

    Returns:
      The path of the page.

    Raises:
      InputError: there is no such directory, it holds no run or one of an experiment that has no page, or
        one of its files is damaged.
    """
    from ssl_jax.report import classifying, judging, playing, pretraining  # Here: all use this module.

    pages = {
        "pretrain": (pretraining.summary, pretraining.SECTIONS),
        "dueling_dqn": (playing.summary, playing.SECTIONS),
        "evaluate": (judging.summary, judging.SECTIONS),
        "deepfake": (classifying.summary, classifying.SECTIONS),
    }
    run = read(workdir)
    config_lib.check_known("experiment", run.experiment, pages)
    summary, sections = pages[run.experiment]
    written = [
        (name, heading, "".join(write(run))) for name, heading, write in (*sections, *_CLOSING_SECTIONS)
    ]
    path = run.workdir / "report.html"
    files.write_text(path, render(run.workdir.resolve().name, "".join(summary(run)), written))
    return path


def render(title: str, summary: str, sections: Iterable[tuple[str, str, str]]) -> str:
    """A whole page.

    Args:
      title: heading of the page, as text.
      summary: HTML below it.
      sections: (id, heading, HTML) of each; one without HTML is left out.
    """
    sections = [section for section in sections if section[2]]
    return _PAGE.substitute(
        style=_STYLE,
        name=escape(title),
        summary=summary,
        links=" ".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections),
        sections="\n".join(
            f'<section id="{name}"><h2>{heading}</h2>\n{body}</section>' for name, heading, body in sections
        ),
    )


def percentage(value: float | None) -> str:
    """0.1234 -> '12.3 %'."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if is_finite(value) else "–"


def score(value: float | None) -> str:
    """0.12345 -> '0.123'."""
    return f"{value:.3f}" if is_finite(value) else "–"


def points(value: float | None) -> str:
    """A game's score: -20.714 -> '−20.71', 864.0 -> '864.0'."""
    if not is_finite(value):
        return "–"
    return f"{value:,.{2 if abs(value) < 100 else 1}f}".replace("-", "−")


def difference(value: float | None, baseline: float | None) -> str:
    """Signed `value - baseline`, with a triangle that tells the sign without colour."""
    if not (is_finite(value) and is_finite(baseline)):
        return "–"
    change = round(value - baseline, 3)
    sign = "▲\N{NO-BREAK SPACE}+" if change > 0 else "▼\N{NO-BREAK SPACE}−" if change < 0 else "±"
    return f"{sign}{abs(change):.3f}"


def duration(seconds: float | None) -> str:
    """3725 -> '1 h 2 min'."""
    if not is_finite(seconds):
        return "–"
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    if hours:
        return f"{hours:,}\N{NO-BREAK SPACE}h {minutes}\N{NO-BREAK SPACE}min"
    if minutes:
        return f"{minutes}\N{NO-BREAK SPACE}min {seconds % 60}\N{NO-BREAK SPACE}s"
    return f"{seconds}\N{NO-BREAK SPACE}s"


# Sections that every page ends with.


def _config(run: Run) -> Iterator[str]:
    yield (
        "<details><summary>All settings of the run</summary><p>Any of them can be changed from the "
        "command line with <code>--config.KEY=VALUE</code>.</p>"
        f"{key_values(run.config)}</details>"
    )


def _repeat(run: Run) -> Iterator[str]:
    results = run.results
    if "command" in results:
        yield f"<pre><code>{escape(results['command'])}</code></pre>"
    else:
        yield "<p class=missing>The command is recorded when the run finishes.</p>"
    machine = {name: results[name] for name in ("device", "seed") if name in results}
    if machine or run.part("versions"):
        yield key_values({**machine, **run.part("versions")})
    if protocol := run.part("protocol"):
        yield (f"<details><summary>Protocol behind the numbers</summary>{key_values(protocol)}</details>")


_CLOSING_SECTIONS: tuple[tuple[str, str, Callable[[Run], Iterator[str]]], ...] = (
    ("config", "Configuration", _config),
    ("repeat", "Repeat this run", _repeat),
)


# Pieces of HTML.


def escape(value: object) -> str:
    """Text as HTML."""
    return html.escape(str(value))


def readable(name: str) -> str:
    """'small_object' -> 'small object'."""
    return name.replace("_", " ")


def unfinished(run: Run) -> str:
    """Says so if the run has not finished; else empty."""
    if run.results:
        return ""
    steps = [line["step"] for line in run.metrics]
    reached = f"up to step {max(steps):,}" if steps else "which is no number yet"
    return (
        "<p class=notice>This run has not finished: there is no <code>results.json</code> yet. "
        f"The page shows what was written so far, {reached}.</p>"
    )


def number_tile(label: str, value: str, note: str = "") -> str:
    """A number in large type, with HTML below it that says what to hold it against."""
    return (
        f"<div class=number><div class=label>{label}</div><div class=value>{value}</div>"
        f"<div class=note>{note}</div></div>"
    )


def panel(
    run: Run,
    name: str,
    labels: Mapping[str, str],
    ylabel: str,
    *,
    over: str = "step",
    **options: Any,
) -> str:
    """Curves of those metrics that were logged; empty if none was.

    Args:
      run: whose metrics.
      name: the figure is also written to `figures/NAME.png`.
      labels: metric -> what to call it.
      ylabel: name and unit of the values.
      over: what to draw them over, the steps or a metric.
      **options: of `figures.curves`.
    """
    series = {label: run.series(metric, over) for metric, label in labels.items()}
    series = {label: (x, y) for label, (x, y) in series.items() if x}
    if not series:
        return ""
    drawn = figures.curves(series, ylabel=ylabel, **options)
    alt = f"Curves over {drawn.axes[0].get_xlabel()}: {', '.join(series)}."
    return figure(run.figure_path(name), drawn, alt)


def figure(path: Path, drawn: Figure, alt: str, *, wide: bool = False) -> str:
    """Writes a figure to a PNG file and shows it."""
    return image(figures.save(path, drawn), alt, wide=wide)


def drawn_by_run(run: Run, name: str, alt: str, text: str, *, wide: bool = False) -> str:
    """A picture that the run itself left in `figures/`, below HTML that explains it."""
    path = run.workdir / "figures" / name
    if not path.is_file():
        return f"<p class=missing>The run has not drawn <code>figures/{escape(name)}</code>.</p>"
    return f"<p>{text}</p>{image(path.read_bytes(), alt, wide=wide)}"


def image(data: bytes, alt: str, *, wide: bool = False) -> str:
    """Inlines a GIF, or a PNG at half its pixels; one that would make the page heavy becomes a WebP."""
    kind, scale = "png", figures.PIXELS_AN_INCH / 100
    if data.startswith(b"GIF8"):
        kind, scale = "gif", 1.0
        width, height = struct.unpack("<HH", data[6:10])
    else:
        width, height = struct.unpack(">II", data[16:24])  # the IHDR chunk of a PNG
    if kind == "png" and len(data) > _HEAVY:
        kind, pixels, buffer = "webp", imread(io.BytesIO(data)), io.BytesIO()
        imsave(buffer, pixels, format=kind, pil_kwargs={"quality": 90})
        data = buffer.getvalue()
    return (
        f'<div class="figure{" wide" if wide else ""}"><img alt="{escape(alt)}"'
        f' width="{width / scale:.0f}" height="{height / scale:.0f}"'
        f' src="data:image/{kind};base64,{base64.b64encode(data).decode()}"></div>'
    )


def key_values(values: Mapping[str, Any]) -> str:
    """A table of nested settings."""
    rows = "".join(
        f"<tr><th scope=row>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in flatten(values)
    )
    return f"<div class=scroll><table class=settings><tbody>{rows}</tbody></table></div>"


def scores_table(
    scores: Mapping[str, Mapping[str, float | None]],
    head: str,
    *,
    mean: Mapping[str, float | None] | None = None,
) -> str:
    """Scores as HTML with a column for each encoder, and trained less random where both are there.

    Args:
      scores: encoder -> row -> value.
      head: what the rows are.
      mean: encoder -> value of a last row.
    """
    compared = {"trained", "random"} <= scores.keys()

    def row(name: str, values: Mapping[str, float | None]) -> str:
        cells = "".join(f"<td>{score(values.get(encoder))}</td>" for encoder in scores)
        if compared:
            change = difference(values.get("trained"), values.get("random"))
            sign = {"▲": "up", "▼": "down"}.get(change[0], "even")
            cells += f"<td class={sign}>{change}</td>"
        return f"<tr><th scope=row>{escape(readable(name))}</th>{cells}</tr>"

    names = dict.fromkeys(name for values in scores.values() for name in values)
    rows = [row(name, {encoder: values.get(name) for encoder, values in scores.items()}) for name in names]
    heads = "".join(f"<th scope=col>{escape(readable(encoder))}</th>" for encoder in scores)
    return (
        "<div class=scroll><table class=scores>"
        f"<thead><tr><th scope=col>{escape(head)}</th>{heads}"
        f"{'<th scope=col>difference</th>' if compared else ''}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody>"
        + (f"<tfoot>{row('mean', mean)}</tfoot>" if mean is not None else "")
        + "</table></div>"
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """{'a': {'b': 1}} -> ('a.b', '1'), the form of a command line override."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > 20:
            yield f"{prefix}{key}", f"{', '.join(map(str, value[:20]))}, … ({len(value):,} in all)"
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


# Files.


def is_finite(value: object) -> bool:
    """Whether this is a number, and neither NaN nor infinite."""
    return isinstance(value, int | float) and math.isfinite(value)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(files.try_twice(path.read_text))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise files.out_of_reach(f"'{path}'", files.explain(error)) from None
    except ValueError as error:
        raise InputError(f"'{path}' is damaged: it is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise InputError(f"'{path}' is damaged: it should hold a JSON object.")
    return value


_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>$name</title>
<style>$style</style>
</head>
<body>
<main>
<header id="summary">
<h1>$name</h1>
$summary
<nav aria-label="Sections">$links</nav>
</header>
$sections
</main>
</body>
</html>
""")

_STYLE = """
:root {
  --page: #f6f7f9; --card: #ffffff; --ink: #1f2933; --soft: #5b6672; --line: #dfe3e8;
  --link: #005a8e; --up: #005a8e; --down: #b04a00; --notice: #fff5e6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --card: #1d232a; --ink: #e4e8ec; --soft: #9aa5b1; --line: #343c46;
    --link: #6cb8ea; --up: #6cb8ea; --down: #f0a05e; --notice: #33291b;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1096px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }
h1, td, code { overflow-wrap: anywhere; }
h2 { margin: 0 0 .5rem; font-size: 1.25rem; line-height: 1.3; }
p { margin: 0 0 1rem; max-width: 46rem; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
section { margin-top: 3rem; }
code, pre, .settings { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { font-size: .9em; }
.lead { margin: .4rem 0 1.25rem; color: var(--soft); font-size: 1.1rem; }
.notice { padding: .7rem 1rem; background: var(--notice); border-left: 3px solid var(--down); }
.missing { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding-top: .75rem;
  border-top: 1px solid var(--line); font-size: .9rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr));
  gap: 1rem; margin-bottom: 1.25rem; }
.number, .figure, table, pre { background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
.number { padding: .8rem 1rem; }
.label, .note { color: var(--soft); font-size: .85rem; line-height: 1.4; }
.value { font-size: 1.6rem; font-weight: 600; line-height: 1.35; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem;
  align-items: start; margin-bottom: 1rem; }
.figure { padding: 12px; background: #ffffff; overflow-x: auto; }
.figure + p { margin-top: 1rem; }
.figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.scroll { margin-bottom: 1rem; overflow-x: auto; }
table { width: 100%; border-spacing: 0; font-size: .9rem; overflow: hidden; }
th, td { padding: .38rem .8rem; text-align: left; vertical-align: top;
  border-top: 1px solid var(--line); }
th { font-weight: 500; }
thead th { color: var(--soft); font-size: .85rem; }
thead tr:first-child > *, tbody:first-child tr:first-child > * { border-top: 0; }
.scores :is(td, thead th:not(:first-child)) { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.scores tfoot :is(th, td) { font-weight: 650; border-top: 2px solid var(--line); }
.scores .group th { color: var(--soft); font-size: .85rem; border-top-width: 2px; }
.scores .up { color: var(--up); }
.scores .down { color: var(--down); }
.settings { font-size: .82rem; }
.settings th { width: 38%; color: var(--soft); }
details { margin-bottom: 1rem; }
summary { margin-bottom: .6rem; color: var(--link); cursor: pointer; }
pre { margin: 0 0 1rem; padding: .9rem 1rem; overflow-x: auto; user-select: all; }
@media (max-width: 760px) {
  main { padding: 1.5rem 1rem 3rem; }
  .pair { grid-template-columns: minmax(0, 1fr); }
  .numbers { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem; }
  .figure { padding: 8px; }
  .wide img { max-width: none; width: 720px; }
  .value { font-size: 1.35rem; }
  th, td { padding: .35rem .45rem; }
  .scores { font-size: .8rem; }
}
@media (prefers-color-scheme: dark) { .figure { filter: brightness(.94); border: 0; } }
@media print {
  body { background: none; }
  section { break-inside: avoid; }
}
"""
