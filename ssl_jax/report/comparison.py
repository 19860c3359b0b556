"""One page that compares several runs: of Dueling DQN on a game, or of pre-training.

python -m ssl_jax.report.comparison --runs=runs/none,runs/sequence,runs/rotation --output=comparison.html
python -m ssl_jax.report.comparison --sweep=runs/ablation     # the table and page of a sweep, anew
python -m ssl_jax.report.comparison --sweep=runs/ablation --compare=tasks --baseline=spatial

The runs may still be going on. Where the protocols of games differ, a warning names in what: such scores do
not compare. The figures are also written as PNG files beside the page.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from ssl_jax.report import figures, page, playing
from ssl_jax.report import sweep as sweep_lib
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import files, paths
from ssl_jax.runtime.errors import InputError

_WIDE = 2.05 * figures.WIDTH


def build(workdirs: Sequence[str | Path], output: str | Path) -> Path:
    """Writes a self-contained page about several runs, and its figures as `<stem>_*.png` beside it.

    Warnings about protocols that differ are in the page and are also printed to standard error.

    Args:
      workdirs: work directories of at least two runs of the same game, or of pre-training.
      output: the page.

    Returns:
      The path of the page.

    Raises:
      InputError: there are fewer than two work directories, one is given twice, is none, is damaged, or
        is of another experiment or game than the others; or the page cannot be written.
    """
    output = Path(output)
    if output.is_dir():
        raise InputError(f"'{output}' is a directory; --output must name the page, such as comparison.html.")
    runs = _read(workdirs)
    of_games = next(iter(runs.values())).experiment == "dueling_dqn"
    warned = playing.warnings(runs) if of_games else []
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if of_games:
            text = _page(runs, warned, output)
        else:
            place = lambda name: _figure_path(output, name)
            text = sweep_lib.render(sweep_lib.of_runs(runs, "Comparison", place))
        files.write_text(output, text)
    except OSError as error:
        raise InputError(f"'{output}' cannot be written ({error.strerror}).") from error
    for text in warned:
        print(f"WARNING: {text}", file=sys.stderr)
    return output


def _read(workdirs: Sequence[str | Path]) -> dict[str, page.Run]:
    """Label -> run; the label is the directory's name, or its path where two have the same name."""
    paths = [Path(workdir) for workdir in workdirs]
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise InputError(f"The run '{path}' is given twice; a comparison is of different runs.")
    if len(paths) < 2:
        raise InputError(f"A comparison needs at least two runs, not {len(paths)}: --runs=runs/a,runs/b.")
    names = [place.name for place in resolved]
    labels = names if len(set(names)) == len(names) else list(map(str, paths))
    runs = dict(zip(labels, map(page.read, paths), strict=True))
    first, *others = runs.values()
    config_lib.check_known("experiment to compare", first.experiment, ("dueling_dqn", "pretrain"))
    for run in others:
        if run.experiment != first.experiment:
            raise InputError(
                f"'{run.workdir}' is a run of the experiment '{run.experiment}'; a comparison is of runs "
                f"of one experiment, here '{first.experiment}'."
            )
    if first.experiment == "pretrain":
        return runs
    games = {label: playing.game(run) for label, run in runs.items()}
    if len(set(games.values())) > 1:
        listed = ", ".join(f"{label} plays {game}" for label, game in games.items())
        raise InputError(f"Runs of different games do not compare: {listed}; give runs of one game.")
    return runs


def _page(runs: Mapping[str, page.Run], warned: Sequence[str], output: Path) -> str:
    lead = f"{len(runs)} runs of {playing.game(next(iter(runs.values())))}, compared."
    summary = f"<p class=lead>{page.escape(lead)}</p>"
    summary += "".join(f"<p class=notice><b>WARNING.</b> {page.escape(text)}</p>" for text in warned)
    sections = [
        ("scores", "Scores", "".join(_scores(runs))),
        ("curves", "Training", "".join(_curves(runs, output))),
        ("protocols", "Protocols", "".join(_protocols(runs))),
        ("repeat", "Repeat these runs", "".join(_repeat(runs))),
    ]
    return page.render("Comparison", summary, sections)


# The sections of the page.


def _scores(runs: Mapping[str, page.Run]) -> Iterator[str]:
    heads = ("auxiliary task", "last agent", "best agent", "agent steps", "wall time")

    def row(label: str, run: page.Run) -> str:
        cells = [page.escape(playing.auxiliary_task(run))]
        for name in ("last", "best"):
            score = playing.agents(run).get(name) or {}
            cells.append(f"{page.points(score.get('return_mean'))}<br><small>{_interval(run, name)}</small>")
        newest = max((line["step"] for line in run.metrics), default=None)
        wall = page.duration(run.results.get("wall_seconds")) if run.results else "not finished"
        cells += [playing.steps(newest), wall]
        html = "".join(f"<td>{cell}</td>" for cell in cells)
        return f"<tr><th scope=row>{page.escape(label)}</th>{html}</tr>"

    yield (
        "<p>Mean raw scores of full games: of the last agent and of the one that did best in an evaluation "
        "beside training. The 95 % interval below a score is over seeds where a run has several, else over "
        "episodes, which says nothing about the spread between seeds. Scores of a run that has not "
        "finished are from its evaluations beside training, of fewer episodes.</p>"
        "<div class=scroll><table class=scores><thead>"
        f"<tr><th scope=col>run</th>{''.join(f'<th scope=col>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{''.join(row(label, run) for label, run in runs.items())}</tbody></table></div>"
    )
    paper = next((run.part("scores")["reference"] for run in runs.values() if _has_reference(run)), None)
    if paper:
        listed = ", ".join(
            f"{playing.PAPER.get(name, name)} {page.points(value)}" for name, value in paper.items()
        )
        yield f"<p class=notice>The paper has: {page.escape(listed)}. {playing.UNSTATED}</p>"


def _has_reference(run: page.Run) -> bool:
    return bool(run.part("scores").get("reference"))


def _interval(run: page.Run, name: str) -> str:
    score = playing.agents(run).get(name) or {}
    interval = playing.interval(score.get("return_low"), score.get("return_high"))
    return " over ".join(part for part in (interval, playing.over(score)) if part != "–") or "–"


def _curves(runs: Mapping[str, page.Run], output: Path) -> Iterator[str]:
    scores = {label: run.series("eval/return_mean") for label, run in runs.items()}
    scores = {label: series for label, series in scores.items() if series[0]}
    if scores:
        lines = [playing.references(run) for run in runs.values()]
        drawn = figures.returns(
            scores,
            bands={label: playing.band(runs[label]) for label in scores},
            references=max(lines, key=len),
            width=_WIDE,
        )
        yield "<p>Evaluations beside training, with the 95 % interval of their mean.</p>"
        yield _figure(output, "scores", drawn, f"Evaluation scores over {figures.AGENT_STEPS}")
    training = {label: run.series("train/episode_return", "train/episodes") for label, run in runs.items()}
    training = {label: series for label, series in training.items() if series[0]}
    if training:
        drawn = figures.curves(training, ylabel="training score", xlabel="episodes", width=_WIDE)
        yield "<p>Training games, played with exploration, over episodes as in the paper's figure 6.</p>"
        yield _figure(output, "training", drawn, "Training scores over episodes")
    if not (scores or training):
        yield "<p class=missing>No scores have been logged yet.</p>"


def _figure(output: Path, name: str, drawn: Any, alt: str) -> str:
    return page.figure(_figure_path(output, name), drawn, f"{alt}.", wide=True)


def _figure_path(output: Path, name: str) -> Path:
    return output.with_name(f"{output.stem}_{name}.png")


def _protocols(runs: Mapping[str, page.Run]) -> Iterator[str]:
    for label, run in runs.items():
        settings = page.key_values(dataclasses.asdict(playing.protocol(run)))
        yield f"<details><summary>Protocol of {page.escape(label)}</summary>{settings}</details>"


def _repeat(runs: Mapping[str, page.Run]) -> Iterator[str]:
    for label, run in runs.items():
        command = run.results.get("command")
        yield f"<p>{page.escape(label)}</p>"
        if command:
            yield f"<pre><code>{page.escape(command)}</code></pre>"
        else:
            yield "<p class=missing>The command is recorded when the run finishes.</p>"


_RUNS = paths.define_list_flag("runs", [], "Work directories to compare, separated by commas.")
_OUTPUT = paths.define_flag("output", "comparison.html", "The page to write; figures go beside it.")
_SWEEP = paths.define_flag("sweep", None, "Work directory of a sweep, instead of --runs and --output.")
_COMPARE = flags.DEFINE_string("compare", None, "Another axis of the sweep to compare, with --baseline.")
_BASELINE = flags.DEFINE_string("baseline", None, "Value of --compare that the others are held against.")


def main(argv: list[str]) -> None:
    """Compares the runs that the flags name."""
    del argv
    if _SWEEP.value and _RUNS.value:
        raise InputError("Give --runs or --sweep, not both.")
    along = (_COMPARE.value, _BASELINE.value)
    if along.count(None) == 1 or (along != (None, None) and not _SWEEP.value):
        raise InputError("--compare=AXIS and --baseline=VALUE go together, and with --sweep.")
    built = sweep_lib.build(_SWEEP.value, *along) if _SWEEP.value else build(_RUNS.value, _OUTPUT.value)
    print(f"Comparison: {built}")


if __name__ == "__main__":
    config_lib.run_app(main)
