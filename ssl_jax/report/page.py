"""Builds `report.html`, the page about one run, from the run's work directory and nothing else.

The page is one file: pictures are inlined, there are no scripts, and nothing is loaded from
anywhere, so that it can be mailed, archived and opened years later. A run that has not finished
gets a page of what is there.
"""

import base64
import dataclasses
import functools
import html
import io
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave

from ssl_jax.report import figures
from ssl_jax.runtime import metrics
from ssl_jax.runtime.errors import InputError

_HEAVY = 300_000  # bytes of a PNG


@dataclasses.dataclass(frozen=True)
class Run:
    """What a work directory holds.

    Attributes:
      workdir: the directory.
      config: nested config of the run.
      metrics: lines of metrics.jsonl, each with `step` and named numbers.
      selection: lines of selection.jsonl, one an evaluation of the policy; each has `step` and, for
        P permutations, `accuracy` [P], `probability` [P] and `group` [P]. Empty without a policy.
      results: results.json; empty while the run has not finished.
    """

    workdir: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    selection: list[dict[str, Any]]
    results: dict[str, Any]

    @functools.cached_property
    def steps(self) -> np.ndarray:
        """Steps at which the policy was evaluated, [T]."""
        return np.array([line["step"] for line in self.selection])

    @functools.cached_property
    def accuracy(self) -> np.ndarray:
        """Accuracy of each permutation on the selection slice, [T, P]."""
        return np.array([line["accuracy"] for line in self.selection], float)

    @functools.cached_property
    def group(self) -> np.ndarray:
        """Group of each permutation, int [T, P]; group 0 is the hardest."""
        return np.array([line["group"] for line in self.selection], int)

    @functools.cached_property
    def group_probability(self) -> np.ndarray:
        """Share of the samples that each group was drawn for, [T, K]."""
        groups = int(self.group.max()) + 1
        return np.stack(
            [
                np.bincount(line["group"], weights=line["probability"], minlength=groups)
                for line in self.selection
            ]
        )

    @property
    def permutations(self) -> int | None:
        """Size P of the permutation set, where the files tell."""
        if "num" in self.part("permutations"):
            return self.part("permutations")["num"]
        return self.accuracy.shape[1] if self.selection else None

    def part(self, name: str) -> dict[str, Any]:
        """A part of the results; empty where the run has none."""
        return self.results.get(name) or {}

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric; a step logged again after a resume counts once."""
        finite = {line["step"]: line[name] for line in self.metrics if _is_finite(line.get(name, None))}
        steps = sorted(finite)
        return steps, [finite[step] for step in steps]

    def last(self, name: str) -> float | None:
        """The final value of a metric, or the newest one if the run has not finished."""
        final = self.part("final").get(name)
        values = self.series(name)[1]
        return final if _is_finite(final) else (values[-1] if values else None)


def read(workdir: str | Path) -> Run:
    """Reads a work directory.

    Raises:
      InputError: there is no such directory, it holds no run, or one of its files is damaged.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"There is no work directory '{workdir}'; give the --workdir of a run.")
    if not (workdir / "config.json").is_file():
        raise InputError(
            f"'{workdir}' is not the work directory of a run: it has no config.json; give the "
            "--workdir of a run."
        )
    run = Run(
        workdir=workdir,
        config=_read_object(workdir / "config.json"),
        metrics=metrics.read(workdir / metrics.METRICS_FILE),
        selection=metrics.read(workdir / metrics.SELECTION_FILE),
        results=_read_object(workdir / "results.json"),
    )
    for number, line in enumerate(run.metrics, 1):
        if not _is_finite(line.get("step")):
            raise InputError(f"Line {number} of '{workdir / metrics.METRICS_FILE}' should have a 'step'.")
    for number, line in enumerate(run.selection, 1):
        rows = [line.get(name) for name in ("accuracy", "probability", "group")]
        lengths = {len(row) if isinstance(row, list) else 0 for row in rows}
        if lengths != {len(run.selection[0].get("group", ()))} or not _is_finite(line.get("step")):
            raise InputError(
                f"Line {number} of '{workdir / metrics.SELECTION_FILE}' should have a 'step' and "
                "lists 'accuracy', 'probability' and 'group', each with one entry a permutation."
            )
    return run


def build(workdir: str | Path) -> Path:
    """Writes `report.html`, and the figures in it as `figures/*.png`, into a work directory.

    Files appear whole or not at all. Works while the run goes on.

    Returns:
      The path of the page.

    Raises:
      InputError: there is no such directory, it holds no run, or one of its files is damaged.
    """
    run = read(workdir)
    sections = {name: (heading, body) for name, heading, write in _SECTIONS if (body := "".join(write(run)))}
    page = _PAGE.substitute(
        style=_STYLE,
        name=_text(run.workdir.resolve().name),
        summary="".join(_summary(run)),
        links=" ".join(f'<a href="#{name}">{head}</a>' for name, (head, _) in sections.items()),
        sections="\n".join(
            f'<section id="{name}"><h2>{heading}</h2>\n{body}</section>'
            for name, (heading, body) in sections.items()
        ),
    )
    path = run.workdir / "report.html"
    _write(path, page.encode())
    return path


def percentage(value: float | None) -> str:
    """0.1234 -> '12.3 %'."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if _is_finite(value) else "–"


def score(value: float | None) -> str:
    """0.12345 -> '0.123'."""
    return f"{value:.3f}" if _is_finite(value) else "–"


def difference(value: float | None, baseline: float | None) -> str:
    """Signed `value - baseline`, with a triangle that tells the sign without colour."""
    if not (_is_finite(value) and _is_finite(baseline)):
        return "–"
    change = round(value - baseline, 3)
    sign = "▲\N{NO-BREAK SPACE}+" if change > 0 else "▼\N{NO-BREAK SPACE}−" if change < 0 else "±"
    return f"{sign}{abs(change):.3f}"


def duration(seconds: float | None) -> str:
    """3725 -> '1 h 2 min'."""
    if not _is_finite(seconds):
        return "–"
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    if hours:
        return f"{hours:,}\N{NO-BREAK SPACE}h {minutes}\N{NO-BREAK SPACE}min"
    if minutes:
        return f"{minutes}\N{NO-BREAK SPACE}min {seconds % 60}\N{NO-BREAK SPACE}s"
    return f"{seconds}\N{NO-BREAK SPACE}s"


def probe_means(run: Run) -> dict[str, float | None]:
    """Encoder -> mean F1 of its linear probe; empty without a probe."""
    encoders = run.part("probe").get("encoders", {})
    return {name: result.get("mean_f1") for name, result in encoders.items()}


def probe_table(run: Run, by: str) -> dict[str, dict[str, float | None]]:
    """Row (a category or a game) -> encoder -> F1, where `by` is 'by_category' or 'by_game'."""
    encoders = run.part("probe").get("encoders", {})
    rows = dict.fromkeys(row for result in encoders.values() for row in result.get(by, {}))
    return {row: {name: result.get(by, {}).get(row) for name, result in encoders.items()} for row in rows}


# The sections of the page. Each takes a run and yields HTML; one that yields nothing is left out.


def _summary(run: Run) -> Iterator[str]:
    yield f"<p class=lead>{_text(_what_this_run_was(run))}</p>"
    if not run.results:
        steps = [line["step"] for line in run.metrics]
        reached = f"up to step {max(steps):,}" if steps else "which is no number yet"
        yield (
            "<p class=notice>This run has not finished: there is no <code>results.json</code> yet. "
            f"The page shows what was written so far, {reached}.</p>"
        )
    yield f"<div class=numbers>{''.join(_number_tiles(run))}</div>"
    means = probe_means(run)
    trained, random = means.get("trained"), means.get("random")
    if _is_finite(trained) and _is_finite(random):
        verdict = (
            "A linear probe reads the state of the game better from the trained encoder than from "
            f"the same encoder with random weights: F1 {score(trained)} against {score(random)}."
            if round(trained, 3) > round(random, 3)
            else "A linear probe reads the state of the game no better from the trained encoder "
            f"than from the same encoder with random weights: F1 {score(trained)} against "
            f"{score(random)}. By this measure, pre-training did not help."
        )
        yield f"<p>{verdict} This is one run: the spread between seeds is not in these numbers.</p>"


def _what_this_run_was(run: Run) -> str:
    settings = dict(_flatten(run.config))
    data, player = settings.get("data.name"), settings.get("selection.name")
    what = "Jigsaw pre-training" + (f" on {data}" if data else "")
    what += f" with {run.permutations:,} permutations" if run.permutations else " with permutations"
    chosen = {
        None: "",
        "uniform": ", drawn uniformly",
        "policy_gradient": ", chosen by a policy that is learned beside the network",
    }
    return what + chosen.get(player, f", chosen by the player {player}") + "."


def _number_tiles(run: Run) -> Iterator[str]:
    def tile(label: str, value: str, note: str = "") -> str:
        return (
            f"<div class=number><div class=label>{label}</div><div class=value>{value}</div>"
            f"<div class=note>{note}</div></div>"
        )

    if _is_finite(accuracy := run.last("val/accuracy")):
        chance = f"chance {percentage(1 / run.permutations)}" if run.permutations else ""
        yield tile("Pretext accuracy", percentage(accuracy), chance)
    if _is_finite(worst := run.last("val/worst_group_accuracy")):
        yield tile("Worst group", percentage(worst), "pretext accuracy of the hardest group")
    means = probe_means(run)
    if "trained" in means:
        others = [f"{_text(name)} {score(f1)}" for name, f1 in means.items() if name != "trained"]
        yield tile("Linear probe, F1", score(means["trained"]), " · ".join(others))
    if _is_finite(overhead := run.last("time/policy_overhead")):
        yield tile("Policy overhead", percentage(overhead), "extra time over the uniform player")
    if "wall_seconds" in run.results:
        rate = run.last("time/images_per_second")
        note = f"{rate:,.0f} images/s" if _is_finite(rate) else ""
        yield tile("Wall time", duration(run.results["wall_seconds"]), note)


def _curves(run: Run) -> Iterator[str]:
    chance = ("chance", 1 / run.permutations) if run.permutations else None
    names = ("train/accuracy", "val/accuracy", "val/worst_group_accuracy")
    panels = [
        _panel(run, "loss", ["train/loss"], "cross-entropy, nats"),
        _panel(run, "accuracy", names, "pretext accuracy", percent=True, reference=chance),
        _panel(run, "learning_rate", ["train/learning_rate"], "learning rate"),
        _panel(run, "throughput", ["time/images_per_second"], "images per second"),
    ]
    wait = run.last("time/data_wait_share")
    waited = (
        f" When last measured, {percentage(wait)} of the time went into waiting for data."
        if wait is not None
        else ""
    )
    if any(panels):
        yield (
            "<p>Cross-entropy and accuracy of naming which permutation shuffled an image. Accuracy "
            "is measured on training batches and, over all permutations, on validation images; the "
            "worst group holds the permutations that are hardest at the time. Pale lines are "
            f"logged values, strong ones their moving averages.{waited}</p>"
            f"<div class=pair>{''.join(panels)}</div>"
        )
    else:
        yield "<p class=missing>No metrics have been logged yet.</p>"


def _puzzles(run: Run) -> Iterator[str]:
    yield _drawn_by_run(
        run,
        "tiles.png",
        "Puzzles beside the images they were cut from.",
        "Images beside the puzzles cut from them, as they reached the network: after the jitter, "
        "colour changes and normalisation that the configuration asks for, with brightness "
        "stretched for display. The number on a tile is the place it came from; naming the class "
        "means naming this order of numbers.",
        wide=True,
    )


def _policy(run: Run) -> Iterator[str]:
    if not run.selection:
        yield (
            "<p class=missing>No evaluation of a policy is recorded: permutations are drawn "
            "uniformly, or the first evaluation is still to come.</p>"
        )
        return
    groups = run.group_probability.shape[1]
    yield (
        f"<p>At each evaluation the permutations are sorted into {groups} groups of similar "
        "difficulty, and the policy decides how often the coming samples use each group. First the "
        "share of the samples that each group got: orange is more than a uniform draw would give "
        "it, purple is less. Then the accuracy of each permutation on the selection images, from "
        "which the policy judges. A group is a rank of difficulty, so its members change over "
        "time.</p>"
    )
    entropy = ("uniform", math.log(run.accuracy.shape[1]))
    panels = [
        _figure(
            run,
            "policy",
            figures.probability_heat_map(run.steps, run.group_probability),
            "Heat map of the share of samples for each group of permutations over training steps.",
        ),
        _figure(
            run,
            "permutations_over_time",
            figures.permutation_heat_map(run.steps, run.accuracy),
            "Heat map of the accuracy of each permutation over training steps.",
        ),
        _panel(
            run,
            "reward",
            ["selection/reward", "selection/baseline"],
            "reward, in error rate",
            reference=("zero", 0.0),
        ),
        _panel(run, "entropy", ["selection/entropy"], "policy entropy, nats", reference=entropy),
    ]
    yield f"<div class=pair>{''.join(panels)}</div>"
    if panels[2]:
        yield (
            "<p>The reward is how far the selection error fell below the line through its last two "
            "values; the policy learns from reward minus baseline. Entropy at the dashed line "
            "means no preference between groups.</p>"
        )


def _permutations(run: Run) -> Iterator[str]:
    accuracy = run.part("validation").get("permutation_accuracy")
    images = "validation images after training"
    if accuracy is None and run.selection:
        accuracy, images = run.accuracy[-1], f"the selection images at step {run.steps[-1]:,}"
    facts = run.part("permutations")
    if facts:
        yield f"<p>{_text(_permutation_set(facts))}</p>"
    if accuracy is None:
        yield "<p class=missing>The accuracy of single permutations was not measured yet.</p>"
        return
    group = run.group[-1] if run.selection and run.group.shape[1] == len(accuracy) else None
    colour = " Colour is the group in the policy's last evaluation." if group is not None else ""
    yield f"<p>How often each permutation was named correctly on {images}, sorted.{colour}</p>"
    figure = figures.permutation_accuracy(accuracy, group=group)
    alt = "Sorted bars: the accuracy of each permutation, with mean and chance level."
    yield _figure(run, "permutation_accuracy", figure, alt, wide=True)


def _permutation_set(facts: Mapping[str, Any]) -> str:
    sentence = f"The set has {facts.get('num', '?')} permutations"
    if "method" in facts:
        sentence += f" (method {facts['method']})"
    if "min_distance" in facts:
        sentence += f"; any two differ in at least {facts['min_distance']} places"
    if _is_finite(facts.get("mean_distance")):
        sentence += f", {facts['mean_distance']:.2f} on average"
    return sentence + "."


def _filters(run: Run) -> Iterator[str]:
    yield _drawn_by_run(
        run,
        "filters.png",
        "Filters of the first convolution.",
        "Filters of the first convolution as the run last drew them, each scaled by its own "
        "largest weight, with zero in mid-grey. Edges and colour contrasts are signs of learning; "
        "noise is not.",
    )


def _probe(run: Run) -> Iterator[str]:
    means = probe_means(run)
    if not means:
        yield (
            "<p class=missing>The features were not probed: the run has not come to it, or its "
            "data have no labels to probe.</p>"
        )
        return
    yield (
        "<p>How well a linear classifier reads each variable of the game's memory from the frozen "
        "encoder, as F1: weighted over a variable's values, averaged over variables, categories and "
        "games; higher is better. <i>Random</i> is the same encoder with its weights as initialised, "
        "<i>majority</i> always answers the most frequent value. The last column is trained minus random.</p>"
    )
    for by, head in (("by_category", "category"), ("by_game", "game")):
        table = probe_table(run, by)
        if not table:
            continue
        scores = {
            name: {_readable(row): f1[name] for row, f1 in table.items() if _is_finite(f1[name])}
            for name in means
        }
        figure = figures.probe_bars(scores, xlabel="F1")
        alt = f"Bars: F1 of each encoder's probe for each {head}. The table has the numbers."
        yield (
            f"<div class=pair>{_figure(run, 'probe_' + by, figure, alt)}"
            f"{_probe_html(table, means, head)}</div>"
        )
    if protocol := run.part("probe").get("protocol"):
        yield f"<details><summary>Protocol of the probe</summary>{_key_values(protocol)}</details>"


def _probe_html(
    table: Mapping[str, Mapping[str, float | None]], means: Mapping[str, float | None], head: str
) -> str:
    compared = "trained" in means and "random" in means

    def row(name: str, f1: Mapping[str, float | None]) -> str:
        cells = "".join(f"<td>{score(f1.get(encoder))}</td>" for encoder in means)
        if compared:
            change = difference(f1.get("trained"), f1.get("random"))
            sign = {"▲": "up", "▼": "down"}.get(change[0], "even")
            cells += f"<td class={sign}>{change}</td>"
        return f"<tr><th scope=row>{_text(_readable(name))}</th>{cells}</tr>"

    heads = "".join(f"<th scope=col>{_text(_readable(encoder))}</th>" for encoder in means)
    return (
        "<div class=scroll><table class=scores>"
        f"<thead><tr><th scope=col>{head}</th>{heads}"
        f"{'<th scope=col>difference</th>' if compared else ''}</tr></thead>"
        f"<tbody>{''.join(row(name, f1) for name, f1 in table.items())}</tbody>"
        f"<tfoot>{row('mean', means)}</tfoot></table></div>"
    )


def _skipped(run: Run) -> Iterator[str]:
    if "bad_images" not in run.results:
        return
    bad = run.results["bad_images"]
    if not bad or not any(bad.values()):
        yield "<p>No image was skipped: all could be read and were large enough.</p>"
    else:
        yield (
            "<p>Images that could not be read or were too small were skipped and counted.</p>"
            f"{_key_values(bad)}"
        )


def _config(run: Run) -> Iterator[str]:
    yield (
        "<details><summary>All settings of the run</summary><p>Any of them can be changed from the "
        "command line with <code>--config.KEY=VALUE</code>.</p>"
        f"{_key_values(run.config)}</details>"
    )


def _repeat(run: Run) -> Iterator[str]:
    results = run.results
    if "command" in results:
        yield f"<pre><code>{_text(results['command'])}</code></pre>"
    else:
        yield "<p class=missing>The command is recorded when the run finishes.</p>"
    machine = {name: results[name] for name in ("device", "seed") if name in results}
    if machine or run.part("versions"):
        yield _key_values({**machine, **run.part("versions")})
    if protocol := run.part("protocol"):
        yield (f"<details><summary>Protocol behind the numbers</summary>{_key_values(protocol)}</details>")


_SECTIONS: tuple[tuple[str, str, Callable[[Run], Iterator[str]]], ...] = (
    ("curves", "Training", _curves),
    ("puzzles", "The puzzles", _puzzles),
    ("policy", "What the policy chose", _policy),
    ("permutations", "Accuracy of each permutation", _permutations),
    ("filters", "First-layer filters", _filters),
    ("probe", "What the features know", _probe),
    ("data", "Data skipped", _skipped),
    ("config", "Configuration", _config),
    ("repeat", "Repeat this run", _repeat),
)


# Pieces of HTML.


def _text(value: object) -> str:
    return html.escape(str(value))


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _panel(
    run: Run,
    file: str,
    names: Sequence[str],
    ylabel: str,
    *,
    percent: bool = False,
    reference: tuple[str, float] | None = None,
) -> str:
    """Curves of those metrics that were logged; empty if none was."""
    series = {_readable(name.partition("/")[2]): run.series(name) for name in names}
    if names[0].startswith("train/") and len(names) > 1:
        labels = {"train/accuracy": "training", "val/accuracy": "validation"}
        series = {labels.get(name, "worst group"): run.series(name) for name in names}
    series = {label: (steps, values) for label, (steps, values) in series.items() if steps}
    if not series:
        return ""
    figure = figures.curves(series, ylabel=ylabel, percent=percent, reference=reference)
    return _figure(run, file, figure, f"Curves over training steps: {', '.join(series)}.")


def _figure(run: Run, name: str, figure: Figure, alt: str, *, wide: bool = False) -> str:
    """Writes a figure to `figures/NAME.png` and shows it."""
    data = figures.png(figure)
    path = run.workdir / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    _write(path, data)
    return _image(data, alt, wide=wide)


def _drawn_by_run(run: Run, name: str, alt: str, text: str, *, wide: bool = False) -> str:
    path = run.workdir / "figures" / name
    if not path.is_file():
        return f"<p class=missing>The run has not drawn <code>figures/{_text(name)}</code>.</p>"
    return f"<p>{text}</p>{_image(path.read_bytes(), alt, wide=wide)}"


def _image(data: bytes, alt: str, *, wide: bool = False) -> str:
    """Inlines a PNG, at half its pixels; one that would make the page heavy becomes a WebP."""
    width, height = struct.unpack(">II", data[16:24])  # the IHDR chunk of a PNG
    scale = figures.PIXELS_AN_INCH / 100
    kind = "png"
    if len(data) > _HEAVY:
        kind, pixels, buffer = "webp", imread(io.BytesIO(data)), io.BytesIO()
        imsave(buffer, pixels, format=kind, pil_kwargs={"quality": 90})
        data = buffer.getvalue()
    return (
        f'<div class="figure{" wide" if wide else ""}"><img alt="{_text(alt)}"'
        f' width="{width / scale:.0f}" height="{height / scale:.0f}"'
        f' src="data:image/{kind};base64,{base64.b64encode(data).decode()}"></div>'
    )


def _key_values(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{_text(key)}</th><td>{_text(value)}</td></tr>" for key, value in _flatten(values)
    )
    return f"<div class=scroll><table class=settings><tbody>{rows}</tbody></table></div>"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """{'a': {'b': 1}} -> ('a.b', '1'), the form of a command line override."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > 20:
            yield f"{prefix}{key}", f"{', '.join(map(str, value[:20]))}, … ({len(value):,} in all)"
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


# Files.


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"'{path}' is damaged: it is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise InputError(f"'{path}' is damaged: it should hold a JSON object.")
    return value


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


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
