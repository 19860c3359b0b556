"""The last thing a run prints: its numbers beside their baselines, and where the report is."""

import json
from pathlib import Path
from typing import Any

import jax
from absl import logging
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_jax.report import classifying, page, playing, pretraining
from ssl_jax.runtime import config as config_lib


def print_results(workdir: str | Path, console: Console | None = None) -> None:
    """Prints the final numbers of a work directory as tables.

    Args:
      workdir: work directory of a run, which may still be going on.
      console: where to print; the terminal if not given.

    Raises:
      InputError: there is no such directory, it holds no run, or one of its files is damaged.
    """
    run = page.read(workdir)
    console = console or Console()
    if run.experiment == "dueling_dqn":
        console.print(_scores(run))
    elif run.experiment == "deepfake":
        console.print(classifying.table(run))
    else:
        console.print(_numbers(run))
        if pretraining.probe_means(run):
            console.print(_probe(run))
    report = run.workdir / "report.html"
    if report.is_file():
        console.print(Text(f"Report: {report}"), soft_wrap=True)


def show_finished(workdir: str | Path) -> dict[str, Any]:
    """Prints, in process 0, what a finished run has left, and returns what its results.json holds."""
    logging.info("%s holds the results of a finished run.", workdir)
    if jax.process_index() == 0:
        print_results(workdir)
    return json.loads((Path(workdir) / config_lib.RESULTS_FILE).read_text())


def _scores(run: page.Run) -> Table:
    rows = playing.score_rows(run)
    table = Table(title=Text(f"Scores on {playing.game(run)}"), title_justify="left")
    table.add_column("agent")
    for head in ("score", "95 % interval", "over"):
        table.add_column(head, justify="right")
    for of_paper in (False, True):
        for row in rows:
            if row.of_paper == of_paper:
                name = f"{row.name} (paper)" if of_paper else row.name
                table.add_row(Text(name), row.score, row.interval, row.over)
        table.add_section()
    if any(row.of_paper for row in rows):
        table.caption = "The paper does not state the protocol of its scores."
        table.caption_justify = "left"
    return table


def _numbers(run: page.Run) -> Table:
    table = Table(title="Pretext task", title_justify="left")
    table.add_column("measure")
    table.add_column("result", justify="right")
    table.add_column("chance", justify="right")
    for task in run.tasks:
        of_task = f", {page.readable(task)}" if len(run.tasks) > 1 else ""
        chance = page.percentage(pretraining.chance(run, task))
        table.add_row(
            f"validation accuracy{of_task}", page.percentage(run.last(f"val/{task}/accuracy")), chance
        )
        if (balanced := run.last(f"val/{task}/balanced_accuracy")) is not None:
            table.add_row(f"mean over classes{of_task}", page.percentage(balanced), "")
        worst = page.percentage(run.last(f"val/{task}/worst_group_accuracy"))
        table.add_row(f"worst group of classes{of_task}", worst, chance)
    if (similar := run.last("retrieval/state/top1")) is not None:
        rate = page.percentage(run.last("retrieval/state/chance"))
        table.add_row("state agrees with the nearest frame's", page.percentage(similar), rate)
    if (overhead := run.last("time/policy_overhead")) is not None:
        table.add_row("time the policy adds", page.percentage(overhead), "")
    if "wall_seconds" in run.results:
        table.add_row("wall time", page.duration(run.results["wall_seconds"]), "")
    return table


def _probe(run: page.Run) -> Table:
    means = pretraining.probe_means(run)
    table = Table(title="Linear probe of the frozen encoder, F1", title_justify="left")
    table.add_column("category")
    for encoder in means:
        table.add_column(Text(encoder), justify="right")
    compared = {"trained", "random"} <= means.keys()
    if compared:
        table.add_column("trained − random", justify="right")
    rows = pretraining.probe_table(run, "by_category")
    for name, f1 in (*rows.items(), ("mean", means)):
        cells = [page.score(f1.get(encoder)) for encoder in means]
        if compared:
            cells.append(page.difference(f1.get("trained"), f1.get("random")))
        last = name == (list(rows)[-1] if rows else None)
        table.add_row(Text(name.replace("_", " ")), *cells, end_section=last)
    return table
