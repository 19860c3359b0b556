"""What the page says about a classification of manipulated videos."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from ssl_jax.report import figures, page

SPLITS = ("train", "validation", "test")
_MEASURES = ("accuracy", "auc", "log_loss", "calibration_error", "majority")
_SPLIT_RULES = {
    "random": "frames of a test video were learned from",
    "hard": "no frame of a test video was learned from, but its original or another fake of it may have been",
    "grouped": "nothing of the recording that a test video comes from was learned from",
}
STAND_IN = "A stand-in made of Atari frames: it shows no deepfakes, and its numbers say nothing about DFDC."


def values(run: page.Run, unit: str) -> dict[str, dict[str, float]]:
    """Split -> measure -> value, of frames or of videos."""
    final = run.part("final")
    return {
        split: {
            name: final[f"{split}/{unit}/{name}"] for name in _MEASURES if f"{split}/{unit}/{name}" in final
        }
        for split in SPLITS
    }


def verdict(run: page.Run) -> str:
    """Whether anything was learned, as a sentence; empty while nobody knows."""
    stuck, final = run.part("stuck_at_chance"), run.part("final")
    if not stuck:
        return ""
    told = lambda split: (
        f"{page.percentage(final.get(f'{split}/frame/accuracy'))} of the {split} frames, the majority class "
        f"{page.percentage(final.get(f'{split}/frame/majority'))}"
    )
    if stuck["train"]:
        return f"STUCK AT CHANCE: the network learned nothing. It is right on {told('train')}."
    if stuck["test"]:
        return (
            "AT CHANCE ON TEST: what was learned does not carry over to the test frames. The network is "
            f"right on {told('test')}, no more than two standard errors above; and on {told('train')}."
        )
    return f"Above chance: the network is right on {told('test')}."


def table(run: page.Run) -> Table:
    """The scores, for a terminal."""
    split = run.part("split").get("mode", "")
    title = f"{'Stand-in, not DFDC; ' if run.results.get('stand_in') else ''}{split} split"
    found = Table(title=Text(title), title_justify="left", caption=Text(verdict(run)), caption_justify="left")
    found.add_column("measure")
    for name in SPLITS:
        found.add_column(name, justify="right")
    for unit in ("frame", "video"):
        by_split = values(run, unit)
        for measure in _MEASURES:
            cells = [by_split[name].get(measure) for name in SPLITS]
            if any(map(page.is_finite, cells)):
                row = (Text(f"{unit} {page.readable(measure)}"), *map(page.score, cells))
                found.add_row(*row, end_section=measure == _MEASURES[-1])
    return found


# The sections of the page. Each takes a run and yields HTML; one that yields nothing is left out.


def summary(run: page.Run) -> Iterator[str]:
    """What was classified by what, and its most important numbers."""
    config = run.config
    init, name = config.get("init", {}).get("name"), config.get("encoder", {}).get("name")
    what = config.get("train", {}).get("what")
    mode = config.get("data", {}).get("split")
    yield (
        f"<p class=lead>{page.escape(name)}, {page.escape(init)} weights at the start, trained: "
        f"{page.escape(what)}. The {page.escape(mode)} split: {_SPLIT_RULES.get(mode, '')}.</p>"
    )
    yield page.unfinished(run)
    if config.get("data", {}).get("name") == "manipulated_clips":
        yield f"<p class=notice><b>{STAND_IN}</b></p>"
    if said := verdict(run):
        good = said.startswith("Above")
        yield f"<p>{page.escape(said)}</p>" if good else f"<p class=notice><b>{page.escape(said)}</b></p>"
    yield f"<div class=numbers>{''.join(_number_tiles(run))}</div>"


def _number_tiles(run: page.Run) -> Iterator[str]:
    final = run.part("final")
    if not final:
        return
    majority = f"majority class {page.percentage(final.get('test/frame/majority'))}"
    yield page.number_tile("Frame accuracy", page.percentage(final.get("test/frame/accuracy")), majority)
    yield page.number_tile(
        "Video accuracy", page.percentage(final.get("test/video/accuracy")), "means of frames"
    )
    yield page.number_tile("AUC", page.score(final.get("test/frame/auc")), "of test frames; chance is 0.5")
    log_loss, error = (final.get(f"test/frame/{name}") for name in ("log_loss", "calibration_error"))
    yield page.number_tile("Log loss", page.score(log_loss), "nats; always saying 50 % gives 0.693")
    yield page.number_tile("Calibration error", page.score(error), "of test frames")


def _curves(run: page.Run) -> Iterator[str]:
    names = {"train/accuracy": "training", "val/accuracy": "validation"}
    turns = {"train/rotation/accuracy": "quarter turns"}
    best = run.results.get("best_step")
    panels = [
        page.panel(
            run, "loss", {"train/loss": "training", "val/log_loss": "validation"}, "cross-entropy, nats"
        ),
        page.panel(run, "accuracy", names, "frame accuracy", percent=True, reference=("one half", 0.5)),
        page.panel(run, "auc", {"val/auc": "validation"}, "AUC", reference=("chance", 0.5)),
        page.panel(run, "rotation", turns, "accuracy of the auxiliary task", percent=True),
    ]
    if not any(panels):
        yield "<p class=missing>No metrics have been logged yet.</p>"
        return
    stopped = "it stopped early" if run.results.get("stopped_early") else "it went on to its last step"
    tested = (
        f" Tested is step {best:,}, with the highest AUC of validation frames; {stopped}." if best else ""
    )
    yield f"<p>Of single frames.{tested}</p><div class=pair>{''.join(panels)}</div>"


def _frames(run: page.Run) -> Iterator[str]:
    yield page.drawn_by_run(
        run,
        "frames.png",
        "Test frames, and what the network sees of them.",
        "Test frames; beside each what the network sees of it in tests, and three times how it would in "
        "training, with brightness stretched for display.",
        wide=True,
    )


def _scores(run: page.Run) -> Iterator[str]:
    if not run.part("final"):
        return
    yield (
        "<p>Scores of single frames, and of videos, whose probability is the mean over their frames. The "
        "majority is the accuracy of always giving the class that is more frequent in training.</p>"
        f"<div class=pair>{page.scores_table(values(run, 'frame'), 'frames')}"
        f"{page.scores_table(values(run, 'video'), 'videos')}</div>"
    )
    parts = []
    if curve := run.part("calibration"):
        drawn = figures.calibration(curve["probability"], curve["share"], curve["count"])
        parts.append(page.figure(run.figure_path("calibration"), drawn, "Shares of FAKE over probabilities."))
    if counts := run.results.get("confusion"):
        rows = "".join(
            f"<tr><th scope=row>is {label}</th>{''.join(f'<td>{count:,}</td>' for count in row)}</tr>"
            for label, row in zip(("REAL", "FAKE"), counts, strict=True)
        )
        parts.append(
            "<div class=scroll><table class=scores><thead><tr><th scope=col>test frames</th>"
            "<th scope=col>called REAL</th><th scope=col>called FAKE</th></tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )
    yield f"<div class=pair>{''.join(parts)}</div>"


def _attributions(run: page.Run) -> Iterator[str]:
    known = run.part("attributions")
    if not known:
        return
    yield page.drawn_by_run(
        run,
        "attributions.png",
        "Test frames, and maps of the pixels that the answers hang on.",
        "How much each pixel matters to the answer given: SmoothGrad of squares (the mean over noisy copies "
        "of squared gradients), SmoothGrad, VarGrad, integrated gradients, and the plain gradient.",
        wide=True,
    )
    exchanges = {name: known[name] for name in ("deletion", "insertion")}
    rows = {
        "correlation with random parameters": known["parameter_randomisation"],
        **{
            f"area under {name}": dict(zip(of, map(area, of.values()), strict=True))
            for name, of in exchanges.items()
        },
    }
    yield (
        "<p>Whether to believe them. Rank correlation of each kind of map with that of the same network with "
        "random parameters: near 1, a map shows the frame, and nothing that was learned. And the "
        "probability of the answer while the hottest pixels are made grey (deletion: a good map has a small "
        "area), or put on a blurred frame (insertion: a large one); chance takes pixels in random order.</p>"
    )
    kinds = list(exchanges["deletion"])
    by_kind = {row: {kind: of.get(kind) for kind in kinds} for row, of in rows.items()}
    panels = []
    for name, of in exchanges.items():
        series = {kind: (_percents(curve), curve) for kind, curve in of.items()}
        drawn = figures.curves(series, ylabel="probability of the answer", xlabel=f"pixels, {name}, %")
        panels.append(page.figure(run.figure_path(name), drawn, f"Curves of {name}."))
    yield f"{page.scores_table(by_kind, 'kind of map')}<div class=pair>{''.join(panels)}</div>"


def area(curve: Sequence[float]) -> float:
    """The area under a curve over equal shares from 0 to 1, by trapezia."""
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def _percents(curve: Sequence[float]) -> list[float]:
    return np.linspace(0, 100, len(curve)).tolist()


def _split(run: page.Run) -> Iterator[str]:
    split = run.part("split")
    if not split:
        return
    mode = split["mode"]
    yield f"<p>The {page.escape(mode)} split: {_SPLIT_RULES[mode]}.</p>"
    yield page.key_values(_counted(split))
    bad = {**{f"videos, {cause}": text for cause, text in _left_out(run)}, **run.part("bad_images")}
    if bad:
        yield f"<p>Left out, with the first names:</p>{page.key_values(bad)}"
    else:
        yield "<p>No video and no frame was left out.</p>"


def _counted(split: Mapping[str, Any]) -> dict[str, str]:
    told = lambda counts: ", ".join(f"{number:,} {name}" for name, number in counts.items())
    kinds = {
        f"{kind} in {name}": told(counts)
        for name, by_kind in split["balance"].items()
        for kind, counts in by_kind.items()
    }
    return kinds | {f"in both {names}": told(counts) for names, counts in split["leaks"].items()}


def _left_out(run: page.Run) -> Iterator[tuple[str, str]]:
    for cause, (number, *names) in run.part("left_out").items():
        yield cause, f"{number:,}: {', '.join(names)}"


SECTIONS: tuple[tuple[str, str, Callable[[page.Run], Iterator[str]]], ...] = (
    ("scores", "Scores", _scores),
    ("curves", "Training", _curves),
    ("frames", "What the network sees", _frames),
    ("attributions", "Where it looks", _attributions),
    ("split", "The splits, and what leaks", _split),
)
