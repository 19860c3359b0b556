"""What the page and the terminal say about a run of pre-training."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ssl_jax.report import figures, page


def probe_means(run: page.Run) -> dict[str, float | None]:
    """Encoder -> mean F1 of its linear probe; empty without a probe."""
    encoders = run.part("probe").get("encoders", {})
    return {name: result.get("mean_f1") for name, result in encoders.items()}


def probe_table(run: page.Run, by: str) -> dict[str, dict[str, float | None]]:
    """Row (a category or a game) -> encoder -> F1, where `by` is 'by_category' or 'by_game'."""
    encoders = run.part("probe").get("encoders", {})
    rows = dict.fromkeys(row for result in encoders.values() for row in result.get(by, {}))
    return {row: {name: result.get(by, {}).get(row) for name, result in encoders.items()} for row in rows}


def chance(run: page.Run, task: str) -> float | None:
    """Accuracy of guessing, where the files tell."""
    if page.is_finite(share := run.part("final").get(f"val/{task}/chance")):
        return share
    choices = run.choices(task)
    return 1 / choices.accuracy.shape[1] if choices else None


# The sections of the page. Each takes a run and yields HTML; one that yields nothing is left out.


def summary(run: page.Run) -> Iterator[str]:
    """What the run was, and its most important numbers."""
    yield f"<p class=lead>{page.escape(_what_this_run_was(run))}</p>"
    yield page.unfinished(run)
    yield f"<div class=numbers>{''.join(_number_tiles(run))}</div>"
    means = probe_means(run)
    trained, random = means.get("trained"), means.get("random")
    if page.is_finite(trained) and page.is_finite(random):
        verdict = (
            "A linear probe reads the state of the game better from the trained encoder than from "
            f"the same encoder with random weights: F1 {page.score(trained)} against {page.score(random)}."
            if round(trained, 3) > round(random, 3)
            else "A linear probe reads the state of the game no better from the trained encoder "
            f"than from the same encoder with random weights: F1 {page.score(trained)} against "
            f"{page.score(random)}. By this measure, pre-training did not help."
        )
        yield f"<p>{verdict} This is one run: the spread between seeds is not in these numbers.</p>"


_CHOSEN_BY = {
    "uniform": "drawn uniformly",
    "policy_gradient": "chosen by a policy that is learned beside the network",
    "joint": "chosen by a policy that is learned beside the network, for several tasks at once",
}


def _what_this_run_was(run: page.Run) -> str:
    settings = dict(page.flatten(run.config))
    data = settings.get("data.name")
    tasks = [_task(run, settings, name) for name in run.tasks]
    return "Pre-training" + (f" on {data}" if data else "") + (": " if tasks else "") + "; ".join(tasks) + "."


def _task(run: page.Run, settings: Mapping[str, str], name: str) -> str:
    num, player = settings.get(f"{name}.permutations.num"), settings.get(f"{name}.selection.name")
    what = f"{page.readable(name)} task"
    what += f" with {num} permutations" if num else ""
    return what + (f", {_CHOSEN_BY.get(player, f'chosen by the player {player}')}" if player else "")


def _number_tiles(run: page.Run) -> Iterator[str]:
    tile = page.number_tile
    for task in run.tasks:
        of_task = f", {page.readable(task)}" if len(run.tasks) > 1 else ""
        if page.is_finite(accuracy := run.last(f"val/{task}/accuracy")):
            note = f"chance {page.percentage(share)}" if (share := chance(run, task)) else ""
            yield tile(f"Pretext accuracy{of_task}", page.percentage(accuracy), note)
        if page.is_finite(worst := run.last(f"val/{task}/worst_group_accuracy")):
            yield tile(
                f"Worst group{of_task}", page.percentage(worst), "pretext accuracy of the hardest group"
            )
    means = probe_means(run)
    if "trained" in means:
        others = [f"{page.escape(name)} {page.score(f1)}" for name, f1 in means.items() if name != "trained"]
        yield tile("Linear probe, F1", page.score(means["trained"]), " · ".join(others))
    if page.is_finite(overhead := run.last("time/policy_overhead")):
        yield tile("Policy overhead", page.percentage(overhead), "extra time over the uniform player")
    if "wall_seconds" in run.results:
        rate = run.last("time/examples_per_second")
        note = f"{rate:,.0f} examples/s" if page.is_finite(rate) else ""
        yield tile("Wall time", page.duration(run.results["wall_seconds"]), note)


def _curves(run: page.Run) -> Iterator[str]:
    panels = [page.panel(run, "loss", {"train/loss": "loss"}, "cross-entropy, nats")]
    for task in run.tasks:
        names = {
            f"train/{task}/accuracy": "training",
            f"val/{task}/accuracy": "validation",
            f"val/{task}/balanced_accuracy": "validation, mean over classes",
            f"val/{task}/worst_group_accuracy": "worst group",
        }
        share = chance(run, task)
        reference = ("chance", share) if share else None
        label = f"pretext accuracy, {page.readable(task)}"
        panels.append(page.panel(run, f"accuracy_{task}", names, label, percent=True, reference=reference))
    panels += [
        page.panel(run, "learning_rate", {"train/learning_rate": "learning rate"}, "learning rate"),
        page.panel(
            run, "throughput", {"time/examples_per_second": "examples per second"}, "examples per second"
        ),
    ]
    wait = run.last("time/data_wait_share")
    waited = (
        f" When last measured, {page.percentage(wait)} of the time went into waiting for data."
        if wait is not None
        else ""
    )
    if any(panels):
        yield (
            "<p>Cross-entropy, summed over the tasks with their weights, and accuracy of naming the class, "
            "such as which permutation shuffled an image. Accuracy is measured on training batches and, "
            "over all classes, on validation images; the worst group holds the classes that are hardest at "
            "the time. Pale lines are "
            f"logged values, strong ones their moving averages.{waited}</p>"
            f"<div class=pair>{''.join(panels)}</div>"
        )
    else:
        yield "<p class=missing>No metrics have been logged yet.</p>"


_PUZZLES = {
    "spatial": "Images beside the puzzles cut from them, as they reached the network: after the jitter, "
    "colour changes and normalisation that the configuration asks for, with brightness stretched for "
    "display. The number on a tile is the place it came from; naming the class means naming this order "
    "of numbers.",
    "colorization": "Grey pictures as they reached the network, the colours asked for, one for each cell of "
    "its map, and those it named.",
    "temporal": "Clips as they reached the network, after crop, jitter and normalisation, with brightness "
    "stretched for display. The number above a frame is the place in time it came from.",
}


def _puzzles(run: page.Run) -> Iterator[str]:
    for task in run.tasks:
        alt = f"What the network saw in the {page.readable(task)} task."
        text = _PUZZLES.get(task, "Examples as they reached the network.")
        yield page.drawn_by_run(run, f"{task}.png", alt, text, wide=True)


def _policy(run: page.Run) -> Iterator[str]:
    choices = {task: run.choices(task) for task in run.tasks}
    if not any(choices.values()):
        yield (
            "<p class=missing>No evaluation of a policy is recorded: this player never looks at the "
            "network, or the first evaluation is still to come.</p>"
        )
        return
    yield (
        "<p>At each evaluation the classes of a task are sorted into groups of similar difficulty. First the "
        "share of the coming samples that each group got: orange is more than a uniform draw would give "
        "it, purple is less. Then the accuracy of each class on the selection images, from which the "
        "policy judges. A group is a rank of difficulty, so its members change over time.</p>"
    )
    for task, seen in choices.items():
        if seen:
            yield _choices(run, task, seen)


def _choices(run: page.Run, task: str, seen: page.Choices) -> str:
    """What the player of one task chose."""
    entropy = ("uniform", math.log(seen.accuracy.shape[1]))
    reward = {f"selection/{task}/reward": "reward", f"selection/{task}/baseline": "baseline"}
    panels = [
        page.figure(
            run.figure_path(f"policy_{task}"),
            figures.probability_heat_map(seen.steps, seen.group_probability),
            "Heat map of the share of samples for each group of classes over training steps.",
        ),
        page.figure(
            run.figure_path(f"classes_over_time_{task}"),
            figures.permutation_heat_map(seen.steps, seen.accuracy),
            "Heat map of the accuracy of each class over training steps.",
        ),
        page.panel(run, f"reward_{task}", reward, "reward, in error rate", reference=("zero", 0.0)),
        page.panel(
            run,
            f"entropy_{task}",
            {f"selection/{task}/entropy": "entropy"},
            "policy entropy, nats",
            reference=entropy,
        ),
    ]
    heading = f"<h3>{page.escape(page.readable(task))}</h3>" if len(run.tasks) > 1 else ""
    baseline = page.is_finite(run.last(f"selection/{task}/baseline"))
    learned = " the policy gradient learns from reward minus baseline." if baseline else ""
    joint = dict(page.flatten(run.config)).get(f"{task}.selection.name") == "joint"
    error = "the mean selection error of the tasks that share the policy" if joint else "the selection error"
    explained = (
        f"<p>The reward is how far {error} fell below the line through its last two "
        f"values;{learned or ' the player learns from it.'} Entropy at the dashed line means no preference "
        "between classes.</p>"
        if panels[2]
        else ""
    )
    return f"{heading}<div class=pair>{''.join(panels)}</div>{explained}"


def _all_classes(run: page.Run) -> Iterator[str]:
    for task in run.tasks:
        yield from _classes(run, task)


def _classes(run: page.Run, task: str) -> Iterator[str]:
    """Accuracy of each class of one task."""
    seen = run.choices(task)
    accuracy = run.part("validation").get(task, {}).get("class_accuracy")
    images = "validation images after training"
    if accuracy is None and seen:
        accuracy, images = seen.accuracy[-1], f"the selection images at step {seen.steps[-1]:,}"
    if len(run.tasks) > 1:
        yield f"<h3>{page.escape(page.readable(task))}</h3>"
    if facts := run.part("permutations").get(task):
        yield f"<p>{page.escape(_permutation_set(facts))}</p>"
    if accuracy is None:
        yield "<p class=missing>The accuracy of single classes was not measured yet.</p>"
        return
    group = seen.group[-1] if seen and seen.group.shape[1] == len(accuracy) else None
    colour = " Colour is the group in the player's last look." if group is not None else ""
    yield f"<p>How often each class was named correctly on {images}, sorted.{colour}</p>"
    figure = figures.permutation_accuracy(accuracy, group=group)
    alt = "Sorted bars: the accuracy of each class, with mean and chance level."
    yield page.figure(run.figure_path(f"class_accuracy_{task}"), figure, alt, wide=True)


def _permutation_set(facts: Mapping[str, Any]) -> str:
    sentence = f"The set has {facts.get('num', '?')} permutations"
    if "method" in facts:
        sentence += f" (method {facts['method']})"
    if "min_distance" in facts:
        sentence += f"; any two differ in at least {facts['min_distance']} places"
    if page.is_finite(facts.get("mean_distance")):
        sentence += f", {facts['mean_distance']:.2f} on average"
    return sentence + "."


def _filters(run: page.Run) -> Iterator[str]:
    yield page.drawn_by_run(
        run,
        "filters.png",
        "Filters of the first convolution.",
        "Filters of the first convolution as the run last drew them, each scaled by its own "
        "largest weight, with zero in mid-grey. Edges and colour contrasts are signs of learning; "
        "noise is not.",
    )


def probe(run: page.Run) -> Iterator[str]:
    """The state probe: F1 of every encoder by category and by game."""
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
        "games; higher is better. It is shown where in the picture each channel "
        "is active. <i>Random</i> is the same encoder with its weights as initialised, "
        "<i>majority</i> always answers the most frequent value. The last column is trained minus random.</p>"
    )
    for by, head in (("by_category", "category"), ("by_game", "game")):
        table = probe_table(run, by)
        if not table:
            continue
        scores = {
            name: {row: f1[name] for row, f1 in table.items() if page.is_finite(f1.get(name))}
            for name in means
        }
        bars = {
            name: {page.readable(row): f1 for row, f1 in values.items()} for name, values in scores.items()
        }
        figure = figures.probe_bars(bars, xlabel="F1")
        alt = f"Bars: F1 of each encoder's probe for each {head}. The table has the numbers."
        yield (
            f"<div class=pair>{page.figure(run.figure_path('probe_' + by), figure, alt)}"
            f"{page.scores_table(scores, head, mean=means)}</div>"
        )
    if protocol := run.part("probe").get("protocol"):
        yield f"<details><summary>Protocol of the probe</summary>{page.key_values(protocol)}</details>"
    if encoders := run.part("probe_cells").get("encoders"):
        cells = {name: result["by_category"] for name, result in encoders.items()}
        means = {name: result["mean_f1"] for name, result in encoders.items()}
        yield (
            "<p>The same by the means of each channel over the cells of a grid. This hardly tells encoders "
            "apart: an emulator draws the same state to the same pixels, and random features are a "
            f"fingerprint of them.</p>{page.scores_table(cells, 'category', mean=means)}"
        )
    states = {
        name: {"share of state variables": scores["retrieval/state/top1"]}
        for name, scores in run.part("retrieval").items()
        if "retrieval/state/top1" in scores
    }
    if states:
        rate = next(iter(run.part("retrieval").values()))["retrieval/state/chance"]
        yield (
            "<p>Is the game in a similar state in the nearest frame of another episode of the same game, by "
            f"the cosine of the features? With a random frame {page.score(rate)} of the variables agree.</p>"
            + page.scores_table(states, "nearest frame")
        )


def _skipped(run: page.Run) -> Iterator[str]:
    if "bad_images" not in run.results:
        return
    bad = run.results["bad_images"]
    if not bad or not any(bad.values()):
        yield "<p>No image was skipped: all could be read and were large enough.</p>"
    else:
        yield (
            "<p>Images that could not be read or were too small were skipped and counted.</p>"
            f"{page.key_values(bad)}"
        )


SECTIONS: tuple[tuple[str, str, Callable[[page.Run], Iterator[str]]], ...] = (
    ("curves", "Training", _curves),
    ("puzzles", "The puzzles", _puzzles),
    ("policy", "What the policy chose", _policy),
    ("classes", "Accuracy of each class", _all_classes),
    ("filters", "First-layer filters", _filters),
    ("probe", "What the features know", probe),
    ("data", "Data skipped", _skipped),
)
