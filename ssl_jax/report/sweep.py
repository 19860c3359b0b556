"""Several runs in one table and on one page, with intervals over seeds: what a sweep found.

A sweep's work directory holds `sweep.json`, which `launch.sweep` writes, and a directory for each run.
Only runs that have finished count, so that a sweep which goes on can be looked at as well:

python -m ssl_jax.report.comparison --sweep=runs/ablation
python -m ssl_jax.report.comparison --sweep=runs/ablation --compare=tasks --baseline=spatial

Intervals are Student's t intervals of the mean over seeds, 95 %, see `ssl_jax.statistics`.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import statistics
from ssl_jax.report import classifying, figures, page, playing
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import files, metrics
from ssl_jax.runtime.errors import InputError

SWEEP_FILE = "sweep.json"
TABLE_FILE = "table.json"
MARKDOWN_FILE = "table.md"
_SHOWN = re.compile(
    r"val/\w+/(worst_group_)?accuracy|retrieval/state/top1|time/policy_overhead"
    r"|test/(frame|video)/(accuracy|auc)|test/frame/(log_loss|majority)"
)
_SHOWN_OF_EVALUATION = re.compile(
    r"(linear_probe/\w+|finetune)/accuracy|state_probe/\w+/mean_f1|retrieval/\w+/top1"
)
# The columns of the two tables: beginnings of the names of `numbers`.
_RESULTS = (
    "score/", "val/", "test/", "stuck_at_chance", "linear_probe/", "finetune/", "state_probe/", "probe/",
    "retrieval/", "time/", "wall_seconds",
)  # fmt: skip
_LEARNED = "learned/"
_LEARNED_TITLE = "What the features learned"
_WHAT_WAS_LEARNED = (
    "F1 of linear probes of the games' state by category, mean over games: that of the trained encoder "
    "minus that of its random start."
)
# Drawn as well, seed by seed.
_DRAWN = re.compile(
    r"score/(last|best)|val/\w+/accuracy|probe/trained_minus_random|retrieval/.*|test/(frame|video)/auc"
    r"|linear_probe/.*|finetune/.*"
)
# Drawn over training: name of the metric by experiment, and what it is.
_BESIDE_TRAINING = {
    "pretrain": (r"val/\w+/accuracy", "Accuracy on validation examples beside training"),
    "deepfake": (r"val/accuracy", "Accuracy on validation examples beside training"),
    "dueling_dqn": (r"eval/return_mean", "Mean raw scores of the evaluations beside training"),
}


class Entry(NamedTuple):
    """One run of several.

    Attributes:
      name: of the run.
      values: axis -> value; the last axis is the one that is compared.
      seed: of the run.
      command: that makes it.
      run: its work directory, or None where that does not count yet.
    """

    name: str
    values: dict[str, str]
    seed: int
    command: str
    run: page.Run | None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs to be set beside each other.

    Attributes:
      title: of the page.
      command: that makes all of them; "" if there is none.
      baseline: value of the last axis that the others are held against, seed by seed; None: no one is.
      parallel: how many runs went on at the same time.
      entries: the runs.
      figure_path: name of a figure -> where it is written.
      logs: directory with what each run printed; None if there is none.
    """

    title: str
    command: str
    baseline: str | None
    parallel: int
    entries: tuple[Entry, ...]
    figure_path: Callable[[str], Path]
    logs: Path | None = None

    def rows(self) -> dict[tuple[str, ...], list[Entry]]:
        """Values of the axes -> the runs with them, one a seed, in the order of the values."""
        places = [list(dict.fromkeys(entry.values[axis] for entry in self.entries)) for axis in self.axes]
        rows: dict[tuple[str, ...], list[Entry]] = {}
        for entry in self.entries:
            rows.setdefault(tuple(entry.values.values()), []).append(entry)
        order = lambda row: [place.index(value) for place, value in zip(places, row, strict=True)]
        return {row: rows[row] for row in sorted(rows, key=order)}

    def contexts(self) -> dict[tuple[str, ...], dict[str, list[page.Run]]]:
        """Values of all axes but the last -> value of the last -> its runs that count."""
        found: dict[tuple[str, ...], dict[str, list[page.Run]]] = {}
        for row, entries in self.rows().items():
            counted = [entry.run for entry in entries if entry.run]
            if counted:
                found.setdefault(row[:-1], {})[row[-1]] = counted
        return found

    def label(self, value: str) -> str:
        """A value of an axis for figures: overrides by the last part of their keys where that is enough."""
        values = {value for entry in self.entries for value in entry.values.values()}
        short = {value: re.sub(r"\S*\.(?=\w+=)", "", value) for value in values}
        return short[value] if len(set(short.values())) == len(values) else value

    @property
    def axes(self) -> list[str]:
        """Names of the axes; the last one is compared."""
        return list(self.entries[0].values)

    @property
    def first(self) -> Entry | None:
        """The first run that counts."""
        return next((entry for entry in self.entries if entry.run), None)

    @property
    def experiment(self) -> str:
        """What the runs are of, such as `dueling_dqn`."""
        return self.first.run.experiment if self.runs else "pretrain"

    @property
    def runs(self) -> list[page.Run]:
        """All runs that count."""
        return [entry.run for entry in self.entries if entry.run]


class Measure(NamedTuple):
    """A number of a run, and how it is written: times `scale`, with `digits` decimals, in `unit`.

    Attributes:
      name: among those of `numbers`.
      label, unit, scale, digits: how it is written.
      counts: it is 1 or 0, of which a row shows how many are 1.
      compared: runs are held against the baseline in it.
    """

    name: str
    label: str
    unit: str
    scale: float
    digits: int
    counts: bool = False
    compared: bool = True

    def cell(self, estimate: Mapping[str, Any], *, signed: bool = False) -> tuple[str, str]:
        """What a row shows, ('45.3', '44.1 to 46.5') or ('2 of 3', ''); a dash where there is nothing."""
        if self.counts and estimate:
            return f"{round(estimate['mean'] * estimate['n'])} of {estimate['n']}", ""
        return self.text(estimate.get("mean"), signed=signed), self.interval(estimate, signed=signed)

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """The number alone; a dash where there is none."""
        if not page.is_finite(value):
            return "–"
        form = f"{{:{'+' if signed else ''},.{self.digits}f}}"
        return form.format(self.scale * value).replace("-", "−")

    def interval(self, estimate: Mapping[str, Any], *, signed: bool = False) -> str:
        """'44.1 to 46.5', or nothing where there is one seed."""
        if self.unit == "s" or not page.is_finite(estimate.get("low")):
            return ""  # what else the machine did is no chance that a seed takes
        return " to ".join(self.text(estimate[end], signed=signed) for end in ("low", "high"))

    @property
    def heading(self) -> str:
        """Label and unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


# Reading, and what is written.


def build(workdir: str | Path, compare: str | None = None, baseline: str | None = None) -> Path:
    """Writes `table.json`, `table.md`, `report.html` and `figures/*.png` of a sweep.

    Args:
      workdir: of the sweep, where they go.
      compare: another axis than the sweep's to compare along; then they go to `by_<axis>` in there.
      baseline: value of that axis which the others are held against.

    Returns:
      The path of the page.

    Raises:
      InputError: there is no such directory, it holds no sweep, one of its files is damaged, or there is no
        such axis or value.
    """
    sweep, directory = read(workdir), Path(workdir)
    if compare is not None:
        directory /= f"by_{compare}"
        sweep = along(sweep, compare, baseline, directory)
    found = table(sweep)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    metrics.write_json(directory / TABLE_FILE, found)
    files.write_text(directory / MARKDOWN_FILE, markdown(sweep, found))
    path = directory / "report.html"
    files.write_text(path, render(sweep))
    return path


def read(workdir: str | Path) -> Sweep:
    """Reads the work directory of `launch.sweep`.

    Raises:
      InputError: as `build`.
    """
    workdir = Path(workdir)
    path = workdir / SWEEP_FILE
    if not files.exists(path):
        raise InputError(f"'{workdir}' is not the work directory of a sweep: it has no {SWEEP_FILE}.")
    try:
        facts = json.loads(files.try_twice(path.read_text))
        command, baseline, parallel = facts["command"], facts["baseline"], facts["parallel"]
        listed = [
            Entry(run["name"], _last(run["values"], facts["compare"]), run["seed"], run["command"], None)
            for run in facts["runs"]
        ]
    except OSError as error:
        raise files.out_of_reach(f"'{path}'", files.explain(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{path}' is damaged ({error!r}); run the command of the sweep again to write it anew."
        ) from error
    entries = [entry._replace(run=_read_finished(workdir / entry.name)) for entry in listed]
    return Sweep(
        title=workdir.resolve().name,
        command=command,
        baseline=baseline,
        parallel=parallel,
        entries=tuple(entries),
        figure_path=lambda name: workdir / "figures" / f"{name}.png",
        logs=workdir / "logs",
    )


def along(sweep: Sweep, compare: str, baseline: str | None, directory: Path) -> Sweep:
    """The same runs, compared along another axis; figures go to `directory`.

    Raises:
      InputError: there is no such axis, or no such value on it.
    """
    config_lib.check_known("axis of the sweep", compare, sweep.axes)
    known = list(dict.fromkeys(entry.values[compare] for entry in sweep.entries))
    config_lib.check_known(f"value of the axis {compare!r} for --baseline", str(baseline), known)
    entries = [entry._replace(values=_last(entry.values, compare)) for entry in sweep.entries]
    place = lambda name: directory / "figures" / f"{name}.png"
    return dataclasses.replace(sweep, baseline=baseline, entries=tuple(entries), figure_path=place)


def _last(values: Mapping[str, str], axis: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if name != axis} | {axis: values[axis]}


def _read_finished(path: Path) -> page.Run | None:
    return page.read(path) if files.exists(path / config_lib.RESULTS_FILE) else None


def of_runs(runs: Mapping[str, page.Run], title: str, figure_path: Callable[[str], Path]) -> Sweep:
    """Several runs that no sweep made, finished or not; each is compared with each.

    Args:
      runs: label -> run.
      title: of the page.
      figure_path: name of a figure -> where it is written.
    """
    entries = [
        Entry(label, {"run": label}, run.config.get("seed", 0), run.results.get("command", ""), run)
        for label, run in runs.items()
    ]
    return Sweep(title, "", None, 1, tuple(entries), figure_path)


# Numbers.


def numbers(run: page.Run) -> dict[str, float]:
    """Name -> value of the numbers that the table shows; those that are missing or NaN are left out."""
    evaluates = run.experiment == "evaluate"
    shown = _SHOWN_OF_EVALUATION if evaluates else _SHOWN
    found = {name: value for name, value in run.part("final").items() if shown.fullmatch(name)}
    for name, agent in (run.part("scores").get("agents") or {}).items():
        found[f"score/{name}"] = agent.get("return_mean")
    encoders = run.part("probe").get("encoders", {})
    trained, random = (encoders.get(name, {}) for name in ("trained", "random"))
    if page.is_finite(trained.get("mean_f1")):
        if not evaluates:  # whose `final` has it
            found["probe/trained"] = trained["mean_f1"]
        if page.is_finite(random.get("mean_f1")):
            found["probe/trained_minus_random"] = trained["mean_f1"] - random["mean_f1"]
        before = random.get("by_category", {})
        for category, f1 in trained.get("by_category", {}).items():
            if category in before:
                found[f"{_LEARNED}{category}"] = f1 - before[category]
    if stuck := run.part("stuck_at_chance"):
        found["stuck_at_chance"] = float(stuck["test"])
    found["wall_seconds"] = run.results.get("wall_seconds")
    return {name: value for name, value in found.items() if page.is_finite(value)}


def measures(runs: Sequence[page.Run], kinds: Sequence[str] = _RESULTS) -> list[Measure]:
    """The columns of a table: every number of these kinds that one of the runs has."""
    names = dict.fromkeys(name for run in runs for name in numbers(run))
    return [_measure(name) for kind in kinds for name in names if name.startswith(kind)]


def _measure(name: str) -> Measure:
    special_cases = {
        "probe/trained": Measure(name, "probe F1", "", 1, 3),
        "probe/trained_minus_random": Measure(name, "probe F1, trained − random", "", 1, 3),
        "score/last": Measure(name, "score, last agent", "", 1, 2),
        "score/best": Measure(name, "score, best agent", "", 1, 2),
        "score/random": Measure(name, "score, random agent", "", 1, 2, compared=False),
        "eval/return_mean": Measure(name, "score beside training", "", 1, 2),
        "time/policy_overhead": Measure(name, "policy's extra time", "%", 100, 1),
        "stuck_at_chance": Measure(name, "at chance on test", "", 1, 0, counts=True, compared=False),
        "wall_seconds": Measure(name, "wall time", "s", 1, 0, compared=False),
    }
    if name in special_cases:
        return special_cases[name]
    if name.startswith(_LEARNED):
        return Measure(name, page.readable(name.removeprefix(_LEARNED)), "", 1, 3)
    if name.endswith("/mean_f1"):
        return Measure(name, f"{page.readable(name.removesuffix('/mean_f1').replace('/', ' '))} F1", "", 1, 3)
    if name.endswith(("/auc", "/log_loss")):
        return Measure(name, page.readable(name.replace("/", " ")).replace("auc", "AUC"), "", 1, 3)
    words = name.removeprefix("val/").replace("worst_group_accuracy", "worst group").replace("top1", "top-1")
    compared = not name.endswith("/majority")
    return Measure(name, page.readable(words.replace("/", " ")), "%", 100, 1, compared=compared)


def table(sweep: Sweep) -> dict[str, Any]:
    """The table as JSON: of each row its seeds, the estimates, and the differences to the baseline.

    A difference is estimated from the pairs of runs with the same seed, so that what a seed does to both
    cancels out.
    """
    columns, rows = measures(sweep.runs, (*_RESULTS, _LEARNED)), sweep.rows()
    found, protocols = [], _protocols(sweep)
    for row, entries in rows.items():
        own = _by_seed(entries)
        base = _by_seed(rows.get((*row[:-1], sweep.baseline), ())) if row[-1] != sweep.baseline else {}
        values = {
            column.name: {seed: run[column.name] for seed, run in own.items() if column.name in run}
            for column in columns
        }
        pairs = {
            name: {seed: x - base[seed][name] for seed, x in by_seed.items() if name in base.get(seed, {})}
            for name, by_seed in values.items()
            if _measure(name).compared
        }
        found.append(
            {
                "values": dict(zip(sweep.axes, row, strict=True)),
                "seeds": list(own),
                "seeds_missing": [entry.seed for entry in entries if entry.seed not in own],
                "measures": _estimates(values),
                "difference_to_baseline": _estimates(pairs),
                "config_difference": _config_difference(sweep, entries),
                **({"protocol": protocols[row]} if row in protocols else {}),
            }
        )
    return {
        "command": sweep.command,
        "interval": statistics.OVER_SEEDS,
        "compare": sweep.axes[-1],
        "baseline": sweep.baseline,
        "columns": {column.name: column.label for column in columns},
        "rows": found,
        **_made_with(sweep.runs),
        "first_run": sweep.first.name if sweep.first else None,
        "config": sweep.first.run.config if sweep.first else {},
    }


def _protocols(sweep: Sweep) -> dict[tuple[str, ...], dict[str, Any]]:
    """Values of the axes -> protocol of the scores, alike for all seeds; {} where no games are played."""
    if sweep.experiment != "dueling_dqn":
        return {}
    firsts = {row: next((e.run for e in entries if e.run), None) for row, entries in sweep.rows().items()}
    return {row: dataclasses.asdict(playing.protocol(run)) for row, run in firsts.items() if run}


def _estimates(values: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, Any]]:
    """Name -> seed -> value, as name -> estimate and the values it is from."""
    return {
        name: {**statistics.t_interval(list(by_seed.values())), "values": by_seed}
        for name, by_seed in values.items()
        if by_seed
    }


def _config_difference(sweep: Sweep, entries: Sequence[Entry]) -> list[str] | None:
    """Lines "key: value -> value" against the config of the first run, the seed apart; None without a run."""
    for entry in entries:
        if entry.run:
            base, own = ConfigDict(sweep.first.run.config), ConfigDict(entry.run.config)
            return [line for line in config_lib.difference(base, own) if not line.startswith("seed:")]
    return None


def _by_seed(entries: Sequence[Entry]) -> dict[int, dict[str, float]]:
    return {entry.seed: numbers(entry.run) for entry in entries if entry.run and entry.run.results}


def _made_with(runs: Sequence[page.Run]) -> dict[str, Any]:
    """What the numbers hang on besides the configs: the devices and versions of all runs."""
    devices = collections.Counter(run.results["device"] for run in runs if "device" in run.results)
    versions: dict[str, collections.Counter] = {}
    for run in runs:
        for name, version in run.part("versions").items():
            versions.setdefault(name, collections.Counter())[version] += 1
    return {"devices": devices, "versions": versions}


def over_seeds(series: Sequence[Mapping[int, Any]]) -> tuple[list[int], np.ndarray]:
    """Step -> number (or array) of each of S runs -> the steps [T] that all have, and values [S, T, ...]."""
    steps = sorted(set.intersection(*map(set, series))) if series else []
    return steps, np.array([[values[step] for step in steps] for values in series])


def hard_share(accuracy: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Share of the samples that go to the hardest quarter of the classes, [T].

    Counted in classes and not in groups, whose sizes change: so a uniform draw gives a quarter always.

    Args:
      accuracy: [T, P] of each class at T evaluations; of equal ones the first are the hardest.
      probability: [T, P] that each is drawn with from then on.
    """
    hardest = np.argsort(accuracy, axis=1, kind="stable")[:, : _quarter(accuracy.shape[1])]
    return np.take_along_axis(probability, hardest, axis=1).sum(1)


def _quarter(classes: int) -> int:
    return max(1, classes // 4)


# The table as Markdown.


def markdown(sweep: Sweep, found: Mapping[str, Any]) -> str:
    """The table, for a README."""
    lines = [f"# {sweep.title}", "", _lead(sweep), ""]
    if sweep.command:
        lines += ["```sh", sweep.command, "```", ""]
    lines += [f"{_alike(sweep)} {_what_is_measured(sweep)} In parentheses: {statistics.OVER_SEEDS}.", ""]
    for settings, rows in _by_protocol(sweep).items():
        lines += [f"Protocol of {rows}: {', '.join(f'{name} {value}' for name, value in settings)}.", ""]
    lines += [f"**WARNING.** {text}\n" for text in _protocol_warnings(sweep)]
    lines += _markdown_table(sweep, found["rows"], "measures", _RESULTS)
    lines += _markdown_differences(sweep, found, _RESULTS)
    if _columns(sweep, (_LEARNED,)):
        lines += ["", f"# {_LEARNED_TITLE}", "", _WHAT_WAS_LEARNED, ""]
        lines += _markdown_table(sweep, found["rows"], "measures", (_LEARNED,))
        lines += _markdown_differences(sweep, found, (_LEARNED,))
    if waiting := _without_results(sweep):
        lines += ["", "## Runs without results", ""]
        words: dict[str, list[str]] = {}
        for entry in waiting:
            words.setdefault("".join(_last_words(sweep, entry)[-1:]), []).append(entry.name)
        lines += [f"- {', '.join(names)}: {said}" for said, names in words.items()]
    return "\n".join(lines) + "\n"


def _by_protocol(sweep: Sweep) -> dict[tuple[tuple[str, Any], ...], str]:
    """Attributes and values of each protocol -> the rows whose scores are of it, as text."""
    rows: dict[tuple, list[str]] = {}
    for row, protocol in _protocols(sweep).items():
        rows.setdefault(tuple(protocol.items()), []).append(" ".join(row))
    return {settings: "all scores" if len(rows) == 1 else "; ".join(of) for settings, of in rows.items()}


def _protocol_warnings(sweep: Sweep) -> list[str]:
    """A sentence for each pair of rows that are compared and whose protocols differ."""
    if sweep.experiment != "dueling_dqn":
        return []
    return [
        sentence
        for context, compared in sweep.contexts().items()
        for sentence in playing.warnings(
            {" ".join([*context, value]): runs[0] for value, runs in compared.items()}
        )
    ]


def _markdown_differences(sweep: Sweep, found: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    rows = _differing(sweep, found, kinds)
    if not rows:
        return []
    lead = ["", f"## {_difference_title(sweep)}", "", _how_paired(sweep, rows, kinds), ""]
    return lead + _markdown_table(sweep, rows, "difference_to_baseline", kinds)


def _differing(sweep: Sweep, found: Mapping[str, Any], kinds: Sequence[str]) -> list[Mapping[str, Any]]:
    """The rows that are held against the baseline in numbers of these kinds."""
    names = {column.name for column in _columns(sweep, kinds, of_differences=True)}
    return [row for row in found["rows"] if names & set(row["difference_to_baseline"])]


def _markdown_table(
    sweep: Sweep, rows: Sequence[Mapping[str, Any]], part: str, kinds: Sequence[str]
) -> list[str]:
    signed = part != "measures"
    columns = _columns(sweep, kinds, of_differences=signed)
    heads = [*sweep.axes, "seeds", *(_heading(column, signed) for column in columns)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(sweep.axes) + "---:|" * (len(columns) + 1)]
    for row in rows:
        cells = [*row["values"].values(), str(_most_seeds(row[part]))]
        for column in columns:
            cell = row[part].get(column.name, {})
            text, ends = column.cell(cell, signed=signed)
            text += f" ({ends})" if ends else ""
            cells.append(f"**{text}**" if signed and leaves_zero_out(cell) else text)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _columns(sweep: Sweep, kinds: Sequence[str], *, of_differences: bool = False) -> list[Measure]:
    return [column for column in measures(sweep.runs, kinds) if column.compared or not of_differences]


def _most_seeds(cells: Mapping[str, Mapping[str, Any]]) -> int:
    return max((cell["n"] for cell in cells.values()), default=0)


def _heading(column: Measure, signed: bool) -> str:
    return f"{column.label}, points" if signed and column.unit == "%" else column.heading


def leaves_zero_out(cell: Mapping[str, Any]) -> bool:
    """Whether the interval of an estimate is on one side of zero."""
    return page.is_finite(cell.get("low")) and cell["low"] * cell["high"] > 0


def _lead(sweep: Sweep) -> str:
    finished = f"{sum(1 for run in sweep.runs if run.results)} of them finished."
    if not sweep.command:
        return f"{len(sweep.entries)} runs of pre-training, {finished}"
    sizes = [f"{len({entry.values[axis] for entry in sweep.entries})} {axis}" for axis in sweep.axes]
    sizes.append(f"{len({entry.seed for entry in sweep.entries})} seeds")
    return f"{' × '.join(sizes)}: {len(sweep.entries)} runs, {finished}"


def _what_is_measured(sweep: Sweep) -> str:
    """What the numbers are of."""
    if sweep.experiment == "dueling_dqn":
        several = any((run.config.get("num_seeds") or 1) > 1 for run in sweep.runs)
        return (
            "Scores are mean raw returns of full games: of the last agent, and of the one that did best in "
            "an evaluation beside training." + " A run of several agents counts as their mean." * several
        )
    if sweep.experiment == "evaluate":
        return "Scores are on test examples, of the encoder that config.which names."
    if sweep.experiment != "deepfake":
        return (
            "Accuracy is that on validation puzzles over all classes (permutations); the worst group holds "
            "the hardest of them."
        )
    data = {run.config.get("data", {}).get("name") for run in sweep.runs}
    stand_in = f"{classifying.STAND_IN} " if "manipulated_clips" in data else ""
    return (
        f"{stand_in}Scores are of single test frames and, by the mean over their frames, of test videos; the "
        "seed decides the splits as well."
    )


def _difference_title(sweep: Sweep) -> str:
    values = dict.fromkeys(entry.values[sweep.axes[-1]] for entry in sweep.entries)
    others = [value for value in values if value != sweep.baseline]
    if sweep.experiment == "deepfake" and len(others) == 1:
        return f"{others[0]} minus {sweep.baseline}"
    return f"Difference to {sweep.baseline}"


def _alike(sweep: Sweep) -> str:
    """What all runs share, as sentences."""
    facts = []
    training = [run.config.get("train", {}) for run in sweep.runs]
    batches = "batches of {:,}" + (" of each task" if any(len(run.tasks) > 1 for run in sweep.runs) else "")
    steps = (("steps", "{:,} steps"), ("agent_steps", "{:,} agent steps"))
    for key, text in (*steps, ("batch_size", batches)):
        values = {train.get(key) for train in training}
        if len(values) == 1 and page.is_finite(value := values.pop()):
            facts.append(text.format(value))
    sentence = f"Every run: {', '.join(facts)}. " if facts else ""
    devices = list(_made_with(sweep.runs)["devices"])
    if devices:
        sentence += f"{'; '.join(devices)}. "
    if sweep.parallel > 1:
        sentence += f"Up to {sweep.parallel} runs shared the machine, and wall times show it. "
    return sentence.strip()


def _how_paired(sweep: Sweep, rows: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> str:
    cells = [
        cell
        for row in rows
        for name, cell in row["difference_to_baseline"].items()
        if cell["n"] > 1 and name.startswith(tuple(kinds)) and not name.startswith("time/")
    ]
    sentence = (
        f"Each run minus that of {sweep.axes[-1]} {sweep.baseline} with the same seed and all else equal: "
        "mean and interval over these pairs. "
    )
    if sweep.experiment == "deepfake" and sweep.axes[-1] == "split":
        sentence += "What easier splits are better by is leakage: frames of test videos were learned from. "
    if not cells:
        return f"{sentence}One pair has no interval."
    clear = sum(map(leaves_zero_out, cells))
    return (
        f"{sentence}Of {len(cells)} intervals, times apart, {clear} leave zero out (bold); without any true "
        "difference one in twenty would."
    )


# The page.


def render(sweep: Sweep) -> str:
    """The page about several runs; its figures are written as PNG files too."""
    found = table(sweep)
    summary = f"<p class=lead>{page.escape(_lead(sweep))}</p>{''.join(_notices(sweep))}"
    choices = _choices(sweep) if sweep.experiment == "pretrain" else ()
    sections = [
        ("table", "Results", "".join(_table(sweep, found))),
        ("differences", page.escape(_difference_title(sweep)), _differences(sweep, found, _RESULTS)),
        ("learned", _LEARNED_TITLE, _learned(sweep, found)),
        ("curves", "Training", "".join(_curves(sweep))),
        ("protocols", "Protocols of the scores", "".join(_protocol_tables(sweep))),
        ("choices", "What each player chose", "".join(choices)),
        ("configs", "Where the configurations differ", "".join(_configs(sweep, found))),
        ("repeat", "Repeat these runs", "".join(_repeat(sweep))),
    ]
    return page.render(sweep.title, summary, sections)


def _notices(sweep: Sweep) -> Iterator[str]:
    if missing := _without_results(sweep):
        listed = "".join(_missing(sweep, entry) for entry in missing)
        yield (
            f"<p class=notice>{len(missing)} of {len(sweep.entries)} runs have no results: they failed, or "
            f"are still to come.</p><details><summary>Runs without results</summary>{listed}</details>"
        )
    for sentence in _protocol_warnings(sweep):
        yield f"<p class=notice><b>WARNING.</b> {page.escape(sentence)}</p>"
    made = _made_with(sweep.runs)
    for what, count in {"device": made["devices"], **made["versions"]}.items():
        if len(count) > 1:
            listed = ", ".join(f"{value} ({number} runs)" for value, number in count.items())
            yield (
                f"<p class=notice><b>WARNING.</b> The runs differ in more than their configurations: "
                f"{page.escape(what)} is {page.escape(listed)}.</p>"
            )


def _without_results(sweep: Sweep) -> list[Entry]:
    return [entry for entry in sweep.entries if not (entry.run and entry.run.results)]


def _last_words(sweep: Sweep, entry: Entry) -> list[str]:
    """The last lines that a run printed."""
    log = sweep.logs / f"{entry.name}.txt" if sweep.logs else None
    return log.read_text(errors="replace").splitlines()[-3:] if log and log.is_file() else []


def _missing(sweep: Sweep, entry: Entry) -> str:
    lines = _last_words(sweep, entry)
    said = f"<pre><code>{page.escape(chr(10).join(lines))}</code></pre>" if lines else ""
    return f"<p>{page.escape(entry.name)}</p>{said}"


def _table(sweep: Sweep, found: Mapping[str, Any]) -> Iterator[str]:
    if not found["columns"]:
        yield "<p class=missing>No run has finished yet.</p>"
        return
    yield (
        f"<p>{page.escape(_alike(sweep))} Means over seeds; small, the {page.escape(statistics.OVER_SEEDS)}. "
        f"{page.escape(_what_is_measured(sweep))}</p>"
    )
    yield _html_table(sweep, found["rows"], "measures", _RESULTS)
    drawn = [_seeds(sweep, found, column) for column in measures(sweep.runs) if _DRAWN.fullmatch(column.name)]
    if drawn:
        said = "Each dot is a seed, each stroke a mean over seeds."
        yield f"<p>{said}</p><div class=pair>{''.join(drawn)}</div>"


def _seeds(sweep: Sweep, found: Mapping[str, Any], column: Measure) -> str:
    """Dots of single seeds: a row for each context, a colour for each value that is compared."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in found["rows"]:
        if cell := row["measures"].get(column.name):
            *context, value = row["values"].values()
            label = f"{sweep.axes[-1]} {sweep.label(value)}"
            scores.setdefault(_context_label(sweep, context), {})[label] = list(cell["values"].values())
    reference = ("chance", 0.5) if column.name.endswith("/auc") else None
    drawn = figures.seeds(scores, xlabel=column.label, percent=column.unit == "%", reference=reference)
    alt = f"{column.label} of every seed."
    return page.figure(sweep.figure_path(_slug(["seeds", column.name])), drawn, alt)


def _differences(sweep: Sweep, found: Mapping[str, Any], kinds: Sequence[str]) -> str:
    rows = _differing(sweep, found, kinds)
    if not rows:
        return ""
    said = page.escape(_how_paired(sweep, rows, kinds))
    return f"<p>{said}</p>{_html_table(sweep, rows, 'difference_to_baseline', kinds)}"


def _learned(sweep: Sweep, found: Mapping[str, Any]) -> str:
    """The state probe by category; empty if no run has one."""
    if not _columns(sweep, (_LEARNED,)):
        return ""
    rows = _html_table(sweep, found["rows"], "measures", (_LEARNED,))
    return f"<p>{page.escape(_WHAT_WAS_LEARNED)}</p>{rows}{_differences(sweep, found, (_LEARNED,))}"


def _html_table(sweep: Sweep, rows: Sequence[Mapping[str, Any]], part: str, kinds: Sequence[str]) -> str:
    signed = part != "measures"
    columns = _columns(sweep, kinds, of_differences=signed)

    def cell(row: Mapping[str, Any], column: Measure) -> str:
        content = row[part].get(column.name, {})
        mean, ends = column.cell(content, signed=signed)
        bold = signed and leaves_zero_out(content)
        return f"<td>{f'<b>{mean}</b>' if bold else mean}{f'<br><small>{ends}</small>' if ends else ''}</td>"

    def line(row: Mapping[str, Any]) -> str:
        values = list(row["values"].values())
        label = f"<th scope=row>{page.escape(values[-1])}</th><td>{_most_seeds(row[part])}</td>"
        return f"<tr>{label}{''.join(cell(row, column) for column in columns)}</tr>"

    heads = [sweep.axes[-1], "seeds", *(_heading(column, signed) for column in columns)]
    body, context = "", None
    for row in rows:
        values = tuple(row["values"].values())
        if values[:-1] != context:
            context = values[:-1]
            if context:
                title = page.escape(_context_label(sweep, context))
                body += f"<tr class=group><th colspan={len(heads)}>{title}</th></tr>"
        body += line(row)
    return (
        "<div class=scroll><table class=scores><thead><tr>"
        f"{''.join(f'<th scope=col>{_two_lines(head)}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _two_lines(heading: str) -> str:
    return page.escape(heading).replace(" ", "<br>", 1)


def _context_label(sweep: Sweep, context: Sequence[str]) -> str:
    return ", ".join(f"{axis} {sweep.label(value)}" for axis, value in zip(sweep.axes, context, strict=False))


def _protocol_tables(sweep: Sweep) -> Iterator[str]:
    for settings, rows in _by_protocol(sweep).items():
        table = page.key_values(dict(settings))
        yield f"<details><summary>Protocol of {page.escape(rows)}</summary>{table}</details>"


def _curves(sweep: Sweep) -> Iterator[str]:
    if sweep.experiment not in _BESIDE_TRAINING:
        return
    pattern, what = _BESIDE_TRAINING[sweep.experiment]
    panels = []
    for context, players in sweep.contexts().items():
        logged = {name for runs in players.values() for run in runs for line in run.metrics for name in line}
        names = sorted(name for name in logged if re.fullmatch(pattern, name))
        panels += [_curve(sweep, context, players, name) for name in names]
    if any(panels):
        yield (
            f"<p>{what}: the mean over seeds, in a band from the lowest seed to the highest.</p>"
            f"<div class=pair>{''.join(panels)}</div>"
        )
    else:
        yield "<p class=missing>No validation has been logged yet.</p>"


def _curve(sweep: Sweep, context: tuple[str, ...], players: Mapping[str, list[page.Run]], name: str) -> str:
    seeds = {
        sweep.label(player): over_seeds([dict(zip(*run.series(name), strict=True)) for run in runs])
        for player, runs in players.items()
    }
    chances = {run.part("final").get(f"{name.removesuffix('accuracy')}chance") for run in sweep.runs} - {None}
    reference = ("chance", chances.pop()) if len(chances) == 1 else None
    label, percent = _measure(name).label, _measure(name).unit == "%"
    words = [*(word for word in context if not label.startswith(word)), label]
    return _panel(sweep, [*context, name], seeds, " · ".join(words), reference, percent=percent)


def _panel(
    sweep: Sweep,
    name: Sequence[str],
    seeds: Mapping[str, tuple[list[int], np.ndarray]],
    ylabel: str,
    reference: tuple[str, float] | None,
    *,
    percent: bool = True,
) -> str:
    """Means and bands of values [S, T] over steps [T]; empty if there are none.

    A label without values keeps its colour, so that a player looks the same in all panels of a page.
    """
    if not any(steps for steps, _ in seeds.values()):
        return ""
    drawn = figures.curves(
        {label: (steps, values.mean(0) if steps else []) for label, (steps, values) in seeds.items()},
        bands={
            label: (steps, values.min(0), values.max(0))
            for label, (steps, values) in seeds.items()
            if steps and len(values) > 1
        },
        ylabel=ylabel,
        xlabel=figures.AGENT_STEPS if sweep.experiment == "dueling_dqn" else "training step",
        percent=percent,
        reference=reference,
    )
    alt = f"{ylabel} over training steps: {', '.join(seeds)}."
    return page.figure(sweep.figure_path(_slug(name)), drawn, alt)


def _slug(words: Sequence[str]) -> str:
    """Words as the name of a file."""
    return "-".join(re.sub(r"[^\w.=]+", "_", word) for word in words)


def _choices(sweep: Sweep) -> Iterator[str]:
    panels, maps = [], []
    for context, players in sweep.contexts().items():
        for task in dict.fromkeys(task for runs in players.values() for run in runs for task in run.tasks):
            looking = {player: [run for run in runs if run.choices(task)] for player, runs in players.items()}
            words = list(dict.fromkeys([*context, task]))
            if any(looking.values()):
                panels.append(_hard_curve(sweep, task, words, looking))
            for player in filter(looking.get, looking):
                maps.append(_heat_map(sweep, task, [*words, player], looking[player]))
    if not panels:
        yield "<p class=missing>No player looked at the network: there is nothing that it chose by.</p>"
        return
    yield (
        "<p>Share of the samples that went to the quarter of the classes (permutations) which were hardest "
        "at the time, judged on the selection slice: the mean over seeds, in a band from the lowest to the "
        "highest. A player without a line never looks at the network. The dashed line is a uniform "
        f"draw.</p><div class=pair>{''.join(panels)}</div>"
        "<details><summary>Every player, group by group</summary><p>Classes in groups of similar difficulty, "
        "0 the hardest, and the share of the samples that each group got, as mean over seeds. Orange is more "
        "than an equal share of the groups, purple is less.</p>"
        f"<div class=pair>{''.join(maps)}</div></details>"
    )


def _hard_curve(sweep: Sweep, task: str, words: Sequence[str], players: Mapping[str, list[page.Run]]) -> str:
    seeds = {
        sweep.label(player): over_seeds([_hard_shares(run, task) for run in runs])
        for player, runs in players.items()
    }
    size = next(run for runs in players.values() for run in runs).choices(task).accuracy.shape[1]
    uniform = ("uniform draw", _quarter(size) / size)
    return _panel(sweep, ["hard", *words], seeds, " · ".join([*words, "hardest quarter"]), uniform)


def _hard_shares(run: page.Run, task: str) -> dict[int, float]:
    """Step -> share of the samples that go to the hardest quarter."""
    seen = run.choices(task)
    probability = np.array([line["probability"] for line in run.selection if line["task"] == task], float)
    return dict(zip(seen.steps.tolist(), hard_share(seen.accuracy, probability), strict=True))


def _heat_map(sweep: Sweep, task: str, words: Sequence[str], runs: Sequence[page.Run]) -> str:
    choices = [run.choices(task) for run in runs]
    groups = max(seen.group_probability.shape[1] for seen in choices)
    shares = []
    for seen in choices:
        empty = groups - seen.group_probability.shape[1]  # groups without members come last
        padded = np.pad(seen.group_probability, ((0, 0), (0, empty)))
        shares.append(dict(zip(seen.steps.tolist(), padded, strict=True)))
    steps, values = over_seeds(shares)
    if not steps:
        return ""
    title = " · ".join(words)
    drawn = figures.probability_heat_map(steps, values.mean(0))
    path = sweep.figure_path(_slug(["groups", *words]))
    return (
        f"<div><p>{page.escape(title)}</p>{page.figure(path, drawn, f'Share of each group: {title}.')}</div>"
    )


def _configs(sweep: Sweep, found: Mapping[str, Any]) -> Iterator[str]:
    if sweep.first:
        listed = {
            " ".join(row["values"].values()): "; ".join(row["config_difference"]) or "no difference"
            for row in found["rows"]
            if row["config_difference"] is not None
        }
        yield (
            f"<p>Settings of each row against those of {page.escape(sweep.first.name)}, the seed apart.</p>"
            f"<details><summary>Differences</summary>{page.key_values(listed)}</details>"
            f"<details><summary>All settings of {page.escape(sweep.first.name)}</summary>"
            f"{page.key_values(found['config'])}</details>"
        )


def _repeat(sweep: Sweep) -> Iterator[str]:
    if sweep.command:
        yield f"<pre><code>{page.escape(sweep.command)}</code></pre>"
    commands = "".join(
        f"<pre><code>{page.escape(entry.command)}</code></pre>" for entry in sweep.entries if entry.command
    )
    if commands:
        yield f"<details><summary>Single runs</summary>{commands}</details>"
    else:
        yield "<p class=missing>The command is recorded when the run finishes.</p>"
