"""What the page and the terminal say about a run of pre-training on permutations."""

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


def _what_this_run_was(run: page.Run) -> str:
    settings = dict(page.flatten(run.config))
    data, player = settings.get("data.name"), settings.get("selection.name")
    what = "Jigsaw pre-training" + (f" on {data}" if data else "")
    what += f" with {run.permutations:,} permutations" if run.permutations else " with permutations"
    chosen = {
        None: "",
        "uniform": ", drawn uniformly",
        "policy_gradient": ", chosen by a policy that is learned beside the network",
    }
    return what + chosen.get(player, f", chosen by the player {player}") + "."


def _number_tiles(run: page.Run) -> Iterator[str]:
    tile = page.number_tile
    if page.is_finite(accuracy := run.last("val/accuracy")):
        chance = f"chance {page.percentage(1 / run.permutations)}" if run.permutations else ""
        yield tile("Pretext accuracy", page.percentage(accuracy), chance)
    if page.is_finite(worst := run.last("val/worst_group_accuracy")):
        yield tile("Worst group", page.percentage(worst), "pretext accuracy of the hardest group")
    means = probe_means(run)
    if "trained" in means:
        others = [f"{page.escape(name)} {page.score(f1)}" for name, f1 in means.items() if name != "trained"]
        yield tile("Linear probe, F1", page.score(means["trained"]), " · ".join(others))
    if page.is_finite(overhead := run.last("time/policy_overhead")):
        yield tile("Policy overhead", page.percentage(overhead), "extra time over the uniform player")
    if "wall_seconds" in run.results:
        rate = run.last("time/images_per_second")
        note = f"{rate:,.0f} images/s" if page.is_finite(rate) else ""
        yield tile("Wall time", page.duration(run.results["wall_seconds"]), note)


def _curves(run: page.Run) -> Iterator[str]:
    chance = ("chance", 1 / run.permutations) if run.permutations else None
    names = {
        "train/accuracy": "training",
        "val/accuracy": "validation",
        "val/worst_group_accuracy": "worst group",
    }
    panels = [
        page.panel(run, "loss", {"train/loss": "loss"}, "cross-entropy, nats"),
        page.panel(run, "accuracy", names, "pretext accuracy", percent=True, reference=chance),
        page.panel(run, "learning_rate", {"train/learning_rate": "learning rate"}, "learning rate"),
        page.panel(run, "throughput", {"time/images_per_second": "images per second"}, "images per second"),
    ]
    wait = run.last("time/data_wait_share")
    waited = (
        f" When last measured, {page.percentage(wait)} of the time went into waiting for data."
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


def _puzzles(run: page.Run) -> Iterator[str]:
    yield page.drawn_by_run(
        run,
        "tiles.png",
        "Puzzles beside the images they were cut from.",
        "Images beside the puzzles cut from them, as they reached the network: after the jitter, "
        "colour changes and normalisation that the configuration asks for, with brightness "
        "stretched for display. The number on a tile is the place it came from; naming the class "
        "means naming this order of numbers.",
        wide=True,
    )


def _policy(run: page.Run) -> Iterator[str]:
    if not run.selection:
        yield (
            "<p class=missing>No evaluation of a policy is recorded: this player never looks at the "
            "network, or the first evaluation is still to come.</p>"
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
        page.figure(
            run.figure_path("policy"),
            figures.probability_heat_map(run.steps, run.group_probability),
            "Heat map of the share of samples for each group of permutations over training steps.",
        ),
        page.figure(
            run.figure_path("permutations_over_time"),
            figures.permutation_heat_map(run.steps, run.accuracy),
            "Heat map of the accuracy of each permutation over training steps.",
        ),
        page.panel(
            run,
            "reward",
            {"selection/reward": "reward", "selection/baseline": "baseline"},
            "reward, in error rate",
            reference=("zero", 0.0),
        ),
        page.panel(
            run, "entropy", {"selection/entropy": "entropy"}, "policy entropy, nats", reference=entropy
        ),
    ]
    yield f"<div class=pair>{''.join(panels)}</div>"
    if panels[2]:
        yield (
            "<p>The reward is how far the selection error fell below the line through its last two "
            "values; the policy gradient learns from reward minus baseline. Entropy at the dashed line "
            "means no preference between groups.</p>"
        )


def _permutations(run: page.Run) -> Iterator[str]:
    accuracy = run.part("validation").get("permutation_accuracy")
    images = "validation images after training"
    if accuracy is None and run.selection:
        accuracy, images = run.accuracy[-1], f"the selection images at step {run.steps[-1]:,}"
    facts = run.part("permutations")
    if facts:
        yield f"<p>{page.escape(_permutation_set(facts))}</p>"
    if accuracy is None:
        yield "<p class=missing>The accuracy of single permutations was not measured yet.</p>"
        return
    group = run.group[-1] if run.selection and run.group.shape[1] == len(accuracy) else None
    colour = " Colour is the group in the policy's last evaluation." if group is not None else ""
    yield f"<p>How often each permutation was named correctly on {images}, sorted.{colour}</p>"
    figure = figures.permutation_accuracy(accuracy, group=group)
    alt = "Sorted bars: the accuracy of each permutation, with mean and chance level."
    yield page.figure(run.figure_path("permutation_accuracy"), figure, alt, wide=True)


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


def _probe(run: page.Run) -> Iterator[str]:
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
            name: {page.readable(row): f1[name] for row, f1 in table.items() if page.is_finite(f1[name])}
            for name in means
        }
        figure = figures.probe_bars(scores, xlabel="F1")
        alt = f"Bars: F1 of each encoder's probe for each {head}. The table has the numbers."
        yield (
            f"<div class=pair>{page.figure(run.figure_path('probe_' + by), figure, alt)}"
            f"{_probe_html(table, means, head)}</div>"
        )
    if protocol := run.part("probe").get("protocol"):
        yield f"<details><summary>Protocol of the probe</summary>{page.key_values(protocol)}</details>"


def _probe_html(
    table: Mapping[str, Mapping[str, float | None]], means: Mapping[str, float | None], head: str
) -> str:
    compared = "trained" in means and "random" in means

    def row(name: str, f1: Mapping[str, float | None]) -> str:
        cells = "".join(f"<td>{page.score(f1.get(encoder))}</td>" for encoder in means)
        if compared:
            change = page.difference(f1.get("trained"), f1.get("random"))
            sign = {"▲": "up", "▼": "down"}.get(change[0], "even")
            cells += f"<td class={sign}>{change}</td>"
        return f"<tr><th scope=row>{page.escape(page.readable(name))}</th>{cells}</tr>"

    heads = "".join(f"<th scope=col>{page.escape(page.readable(encoder))}</th>" for encoder in means)
    return (
        "<div class=scroll><table class=scores>"
        f"<thead><tr><th scope=col>{head}</th>{heads}"
        f"{'<th scope=col>difference</th>' if compared else ''}</tr></thead>"
        f"<tbody>{''.join(row(name, f1) for name, f1 in table.items())}</tbody>"
        f"<tfoot>{row('mean', means)}</tfoot></table></div>"
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
    ("permutations", "Accuracy of each permutation", _permutations),
    ("filters", "First-layer filters", _filters),
    ("probe", "What the features know", _probe),
    ("data", "Data skipped", _skipped),
)
