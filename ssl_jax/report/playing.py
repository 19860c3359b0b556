"""What the page and the terminal say about a run of Dueling DQN on a game."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ssl_jax.atari.protocol import Protocol, differences
from ssl_jax.report import figures, page
from ssl_jax.runtime.errors import InputError

UNSTATED = (
    "Compare with care: the paper does not state the protocol of its scores, and scores of other "
    "protocols or of another number of frames, do not compare. The paper's give a scale, no more."
)
_OF_EVALUATION = ("return_mean", "return_low", "return_high")
_AGENTS = {"last": "last agent", "best": "best agent", "random": "random agent"}
PAPER = {
    "random": "random agent",
    "human": "human",
    "world_record": "world record",
    "dqn": "DQN",
    "rotation": "DQN with rotation",
    "sequence": "DQN with sequence",
}


class Row(NamedTuple):
    """A score as text.

    Attributes:
      name: whose it is.
      score: mean raw score of full episodes.
      interval: of the mean, 95 %.
      over: what the interval is over, "3 seeds of 100 episodes" or "100 episodes".
      step: agent steps after which the agent was saved.
      of_paper: it stands in the paper, whose protocol is not stated.
    """

    name: str
    score: str
    interval: str = "–"
    over: str = "–"
    step: str = "–"
    of_paper: bool = False


def game(run: page.Run) -> str:
    """Name of the game."""
    return (run.config.get("protocol") or {}).get("game", "a game")


def protocol(run: page.Run) -> Protocol:
    """The protocol of the scores; that of the config, up to the newest step, while the run goes on.

    Raises:
      InputError: it is not one of this version.
    """
    fields = dict(run.part("scores").get("protocol") or {})
    if not fields:
        known = {field.name for field in dataclasses.fields(Protocol)}
        fields = {name: value for name, value in (run.config.get("protocol") or {}).items() if name in known}
        newest = max((line["step"] for line in run.metrics), default=0)
        fields["frames_trained"] = newest * fields.get("frame_skip", Protocol.frame_skip)
    if "frame_size" in fields:
        fields["frame_size"] = tuple(fields["frame_size"])  # JSON knows only lists
    try:
        return Protocol(**fields)
    except TypeError as error:
        raise InputError(f"The protocol in '{run.workdir}' is not one of this version ({error}).") from error


def _value(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def warnings(runs: Mapping[str, page.Run]) -> list[str]:
    """A sentence for each pair of runs whose protocols differ: attributes, and both values of each.

    Args:
      runs: label -> run.
    """
    protocols = {label: protocol(run) for label, run in runs.items()}
    sentences = []
    for (label, own), (other_label, other) in itertools.combinations(protocols.items(), 2):
        if found := differences(own, other):
            named = "; ".join(f"{name} is {_value(a)} and {_value(b)}" for name, (a, b) in found.items())
            both = f"{label} and {other_label}"
            sentences.append(f"Scores of {both} do not compare, because their protocols differ: {named}.")
    return sentences


def auxiliary_task(run: page.Run) -> str:
    """'sequence (alternate)', or 'none'."""
    asked = {**(run.config.get("auxiliary") or {}), **run.part("auxiliary")}
    name = asked.get("name") or "none"
    return f"{name} ({asked['schedule']})" if name != "none" and asked.get("schedule") else name


def agents(run: page.Run) -> dict[str, dict[str, Any]]:
    """'last', 'best' and 'random' -> score, as in results.json.

    While the run goes on: what the evaluations beside training say, which are of fewer episodes and know
    no random agent.
    """
    if run.results:
        return run.part("scores").get("agents") or {}
    ends = {name: dict(zip(*run.series(f"eval/{name}"), strict=True)) for name in _OF_EVALUATION}
    found = {}
    if ends["return_mean"]:
        step = max(ends["return_mean"])
        found["last"] = {"step": step} | {name: ends[name].get(step) for name in _OF_EVALUATION}
    if page.is_finite(best := run.last("eval/best_return")):
        found["best"] = {"return_mean": best}
    return found


def interval(low: float | None, high: float | None) -> str:
    """'17.90 to 18.92', or a dash."""
    known = page.is_finite(low) and page.is_finite(high)
    return f"{page.points(low)} to {page.points(high)}" if known else "–"


def over(score: Mapping[str, Any]) -> str:
    """What the interval of a score is over: '100 episodes', '3 seeds of 100 episodes', or a dash."""
    if not page.is_finite(score.get("episodes")):
        return "–"
    seeds = f"{score['seeds']} seeds of " if score.get("interval_over") == "seeds" else ""
    return f"{seeds}{score['episodes']:,} episodes"


def score_rows(run: page.Run) -> list[Row]:
    """This run's agents, then the paper's where it has the game."""
    rows = [
        Row(
            name=_AGENTS.get(key, key),
            score=page.points(score.get("return_mean")),
            interval=interval(score.get("return_low"), score.get("return_high")),
            over=over(score),
            step=steps(score.get("step")),
        )
        for key, score in agents(run).items()
    ]
    for key, value in (run.part("scores").get("reference") or {}).items():
        rows.append(Row(PAPER.get(key, page.readable(key)), page.points(value), of_paper=True))
    return rows


def steps(step: object) -> str:
    """Agent steps as text: 1000 -> '1,000', one a seed -> '500 to 1,000'."""
    several = step if isinstance(step, list) else [step]
    if not several or not all(map(page.is_finite, several)):
        return "–"
    low, high = min(several), max(several)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def references(run: page.Run) -> dict[str, float]:
    """Scores to hold the curve against: the random agent of the run, and the paper's players."""
    known = run.part("scores").get("reference") or {}
    own = (agents(run).get("random") or {}).get("return_mean")
    lines = {
        "random agent": own if page.is_finite(own) else known.get("random"),
        "human": known.get("human"),
        "world record": known.get("world_record"),
    }
    return {name: value for name, value in lines.items() if page.is_finite(value)}


def band(run: page.Run) -> tuple[list[float], list[float], list[float]]:
    """Agent steps [T], lower and upper ends [T] of the evaluations' intervals."""
    low = dict(zip(*run.series("eval/return_low"), strict=True))
    high = dict(zip(*run.series("eval/return_high"), strict=True))
    both = sorted(low.keys() & high.keys())
    return both, [low[step] for step in both], [high[step] for step in both]


def summary(run: page.Run) -> Iterator[str]:
    """What the run was, and its most important numbers."""
    yield f"<p class=lead>{page.escape(_what_this_run_was(run))}</p>"
    yield page.unfinished(run)
    yield f"<div class=numbers>{''.join(_number_tiles(run))}</div>"
    if run.results and _num_seeds(run) == 1:
        yield (
            "<p>This is one run: the intervals say how far a score may be off because only so many "
            "episodes were played, not how far another seed would be.</p>"
        )


def _num_seeds(run: page.Run) -> int:
    return run.config.get("num_seeds") or 1


def _what_this_run_was(run: page.Run) -> str:
    dueling = (run.config.get("network") or {}).get("dueling", True)
    double = (run.config.get("train") or {}).get("double_q", True)
    kind = " ".join(["dueling"] * dueling + ["double"] * double + ["DQN"])
    task = auxiliary_task(run)
    with_task = "without an auxiliary task" if task == "none" else f"with the auxiliary task {task}"
    seeds = f", {_num_seeds(run)} seeds" if _num_seeds(run) > 1 else ""
    return f"{kind[0].upper()}{kind[1:]} on {game(run)} {with_task}{seeds}."


def _number_tiles(run: page.Run) -> Iterator[str]:
    def note(row: Row) -> str:
        return " over ".join(part for part in (row.interval, row.over) if part != "–")

    labels = {"last agent": "Score, last agent", "best agent": "Score, best agent"}
    labels |= {"random agent": "Random agent"}
    for row in score_rows(run):
        if row.name in labels and not row.of_paper:
            yield page.number_tile(labels[row.name], row.score, note(row))
        elif row.name == "human":
            yield page.number_tile("Human", row.score, "the paper's; protocol not stated")
    trained = (run.part("scores").get("protocol") or {}).get("frames_trained")
    reached = max((line["step"] for line in run.metrics), default=None)
    if page.is_finite(trained):
        yield page.number_tile("Frames trained", f"{trained:,}", f"{reached or 0:,} {figures.AGENT_STEPS}")
    elif reached is not None:
        yield page.number_tile("Agent steps", f"{reached:,}", "of one agent")
    rate = run.last("time/agent_steps_per_second")
    speed = f"{rate:,.0f} agent steps/s" if page.is_finite(rate) else ""
    if "wall_seconds" in run.results:
        yield page.number_tile("Wall time", page.duration(run.results["wall_seconds"]), speed)


# The sections of the page. Each takes a run and yields HTML; one that yields nothing is left out.


def _curves(run: page.Run) -> Iterator[str]:
    def panel(name: str, metric: str, ylabel: str, xlabel: str = figures.AGENT_STEPS, **options: Any) -> str:
        return page.panel(run, name, {metric: ylabel}, ylabel, xlabel=xlabel, **options)

    panels = [
        _scores_figure(run),
        panel("training_score", "train/episode_return", "training score", "episodes", over="train/episodes"),
        panel("q_loss", "train/q_loss", "Q loss"),
        panel("q_value", "train/q_value", "mean Q value"),
        panel("epsilon", "train/epsilon", "epsilon", percent=True),
        panel("throughput", "time/agent_steps_per_second", "agent steps per second"),
    ]
    if not any(panels):
        yield "<p class=missing>No metrics have been logged yet.</p>"
        return
    wait = run.last("time/environment_wait_share")
    waited = (
        f" When last measured, {page.percentage(wait)} of the time went into waiting for the games."
        if wait is not None
        else ""
    )
    yield (
        "<p>First the raw score of greedy evaluation games beside training, with the 95 % interval of their "
        "mean; thin lines are single seeds. Training games are played with exploration, so their score, over "
        "episodes as in the paper's figure 6, is lower. The mean Q value is of the greedy actions, in "
        "discounted rewards as they are learned from. Pale lines are logged values, strong ones their moving "
        f"averages.{waited}</p><div class=pair>{''.join(panels)}</div>"
    )


def _scores_figure(run: page.Run) -> str:
    score = run.series("eval/return_mean")
    if not score[0]:
        return ""
    seeds = [run.series(f"eval/return_seed_{i}") for i in range(_num_seeds(run))]
    drawn = figures.returns(
        {"evaluation": score},
        bands={"evaluation": band(run)},
        seeds=[seed for seed in seeds if seed[0]],
        references=references(run),
    )
    return page.figure(
        run.figure_path("scores"), drawn, f"Curve of the evaluation score over {figures.AGENT_STEPS}."
    )


def _auxiliary(run: page.Run) -> Iterator[str]:
    if auxiliary_task(run) == "none":
        return
    classes = run.part("auxiliary").get("num_classes")
    chance = ("chance", 1 / classes) if classes else None
    norms = {"gradient/q_norm": "Q-learning", "gradient/auxiliary_norm": "auxiliary task"}
    asked, cosine = {"auxiliary/accuracy": "accuracy"}, {"gradient/cosine": "cosine"}
    panels = [
        page.panel(
            run,
            "auxiliary_accuracy",
            asked,
            "accuracy",
            xlabel=figures.AGENT_STEPS,
            percent=True,
            reference=chance,
        ),
        page.panel(
            run,
            "auxiliary_loss",
            {"auxiliary/loss": "loss"},
            "auxiliary loss, nats",
            xlabel=figures.AGENT_STEPS,
        ),
        page.panel(
            run, "gradient_norms", norms, "gradient norm on the trunk", xlabel=figures.AGENT_STEPS, log=True
        ),
        page.panel(
            run,
            "gradient_cosine",
            cosine,
            "cosine of the gradients",
            xlabel=figures.AGENT_STEPS,
            reference=("zero", 0.0),
        ),
    ]
    if not any(panels):
        yield "<p class=missing>No numbers of the auxiliary task have been logged yet.</p>"
        return
    among = f" among {classes} classes" if classes else ""
    yield (
        f"<p>The task {page.escape(auxiliary_task(run))}{among}, asked about the same frame stacks. A cosine "
        "above zero means that the task pulls the shared trunk where Q-learning goes too, below zero that it "
        "pulls against it. The norms say how hard each pulls: a task whose gradient is far larger decides "
        f"what the trunk learns.</p><div class=pair>{''.join(panels)}</div>"
    )


def _scores(run: page.Run) -> Iterator[str]:
    rows = score_rows(run)
    if not rows:
        yield "<p class=missing>No score has been taken yet.</p>"
        return
    origin = (
        "Mean raw scores of full games after training."
        if run.results
        else "Mean raw scores of the evaluations beside training so far; the final ones are still to come."
    )
    yield (
        f"<p>{origin} The 95 % interval of the mean is Student's t interval over the agents of several "
        "seeds, or a bootstrap interval over the episodes of one agent. The best agent is the one that did "
        "best in an evaluation beside training.</p>"
    )
    if any(row.of_paper for row in rows):
        yield f"<p class=notice>{UNSTATED}</p>"
    yield _scores_html(rows)
    if protocol := run.part("scores").get("protocol"):
        yield f"<details><summary>Protocol of the scores</summary>{page.key_values(protocol)}</details>"


def _scores_html(rows: list[Row]) -> str:
    heads = ["score", "95 % interval", "over", "agent step"]

    def html(row: Row) -> str:
        cells = [row.score, row.interval, row.over, row.step]
        html_cells = "".join(f"<td>{cell}</td>" for cell in cells)
        return f"<tr><th scope=row>{page.escape(row.name)}</th>{html_cells}</tr>"

    paper = "".join(html(row) for row in rows if row.of_paper)
    if paper:
        title = "From the paper, protocol not stated"
        paper = f"<tbody><tr class=group><th colspan={len(heads) + 1}>{title}</th></tr>{paper}</tbody>"
    return (
        "<div class=scroll><table class=scores><thead><tr><th scope=col>agent</th>"
        f"{''.join(f'<th scope=col>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{''.join(html(row) for row in rows if not row.of_paper)}</tbody>{paper}</table></div>"
    )


def _stacks(run: page.Run) -> Iterator[str]:
    task = (
        ""
        if auxiliary_task(run) == "none"
        else (" On the right is what the auxiliary task made of the same stack, and the class to be named.")
    )
    yield page.drawn_by_run(
        run,
        "stacks.png",
        "Frame stacks from the memory, beside the inputs of the auxiliary task if there is one.",
        "Frame stacks from the replay memory, as they reach the network, the newest frame last. "
        f"<i>Motion</i> shows what changed within the stack: all that stood still is black.{task}",
        wide=True,
    )


def _episode(run: page.Run) -> Iterator[str]:
    yield page.drawn_by_run(
        run,
        "episode.gif",
        "Animation of an evaluation game.",
        "The beginning of a game that the last agent played after training, as the network sees it.",
    )


SECTIONS: tuple[tuple[str, str, Callable[[page.Run], Iterator[str]]], ...] = (
    ("curves", "Training", _curves),
    ("auxiliary", "The auxiliary task", _auxiliary),
    ("scores", "Scores", _scores),
    ("stacks", "What the network saw", _stacks),
    ("episode", "A game", _episode),
)
