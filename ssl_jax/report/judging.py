"""What the page says about an evaluation of a pre-training run's checkpoint."""

import itertools
from collections.abc import Callable, Iterator, Mapping

from ssl_jax.report import figures, page, pretraining

_MEASURES = ("accuracy", "balanced_accuracy", "macro_f1")
_KINDS = {
    "frame": "A frame counts as found where one of its k nearest frames has its class.",
    "clip": "Clips are means of the features of successive frames of one video.",
    "video": "Whole videos are means over all of their frames.",
}


def evaluations(run: page.Run) -> dict[str, dict[str, float]]:
    """Encoder -> name of a measure -> value."""
    return run.part("evaluations")


def under(run: page.Run, prefix: str) -> dict[str, dict[str, float]]:
    """Encoder -> the rest of a measure's name after `prefix` -> value, of encoders that have any."""
    found = {
        encoder: {
            name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)
        }
        for encoder, values in evaluations(run).items()
    }
    return {encoder: values for encoder, values in found.items() if values}


# The sections of the page. Each takes a run and yields HTML; one that yields nothing is left out.


def summary(run: page.Run) -> Iterator[str]:
    """What was judged, and its most important numbers."""
    checkpoint = run.part("checkpoint")
    step = checkpoint.get("step")
    at = "as initialised" if step is None else f"at step {step:,}"
    label = run.results.get("label")
    data = run.part("data")
    yield (
        f"<p class=lead>The frozen encoder of {page.escape(checkpoint.get('directory', 'a run'))}, {at}"
        + (f"; classes: {page.escape(label)}" if label else "")
        + ".</p>"
    )
    if data:
        splits = ", ".join(f"{split} is {text}" for split, text in (data.get("splits") or {}).items())
        units = "" if data.get("unit") != "video" else (
            f" Scores are of videos, {data.get('frames_per_video')} evenly spaced frames of each; a video is "
            "answered by the mean over its frames."
        )  # fmt: skip
        yield f"<p>Data: {page.escape(data.get('name'))}; {page.escape(splits)}.{page.escape(units)}</p>"
    yield page.unfinished(run)
    yield f"<div class=numbers>{''.join(_number_tiles(run))}</div>"


def _number_tiles(run: page.Run) -> Iterator[str]:
    for name, label in (
        ("state_probe/positions/mean_f1", "State probe, F1"),
        ("retrieval/state/top1", "Similar state, top-1"),
        ("retrieval/frame/top1", "Frame retrieval, top-1"),
        ("finetune/accuracy", "Fine-tuned accuracy"),
    ):
        values = {encoder: scores[name] for encoder, scores in evaluations(run).items() if name in scores}
        if values:
            (_, first), *others = values.items()
            note = " · ".join(f"{page.escape(encoder)} {page.score(value)}" for encoder, value in others)
            yield page.number_tile(label, page.score(first), note)


def _layers(run: page.Run) -> Iterator[str]:
    found = under(run, "linear_probe/")
    if not found:
        return
    by_measure: dict[str, dict[str, dict[str, float]]] = {measure: {} for measure in _MEASURES}
    for (encoder, values), measure in itertools.product(found.items(), _MEASURES):
        scores = {
            name.rpartition("/")[0]: value for name, value in values.items() if name.endswith(f"/{measure}")
        }
        by_measure[measure][encoder] = scores
    figure = figures.probe_bars(by_measure["accuracy"], xlabel="accuracy")
    tables = "".join(page.scores_table(by_measure[name], page.readable(name)) for name in _MEASURES)
    yield (
        "<p>Softmax regression on the frozen maps of each layer, means over the cells of a grid; the weight "
        "decay was chosen on validation examples.</p>"
        f"<div class=pair>{page.figure(run.figure_path('linear_probe'), figure, 'Bars: accuracy by layer.')}"
        f"<div>{tables}</div></div>"
    )


def _neighbours(run: page.Run) -> Iterator[str]:
    found = under(run, "retrieval/")
    if not found:
        return
    kinds = [kind for kind in _KINDS if any(f"{kind}/top1" in values for values in found.values())]
    panels = []
    for kind in kinds:
        series = {
            encoder: _over_k(values, kind) for encoder, values in found.items() if f"{kind}/top1" in values
        }
        drawn = figures.curves(series, ylabel=f"{kind}s found", xlabel="neighbours k", percent=True)
        panels.append(page.figure(run.figure_path(f"retrieval_{kind}"), drawn, f"Share of {kind}s found."))
    yield f"<p>{' '.join(_KINDS[kind] for kind in kinds)} Similarity is the cosine.</p>"
    yield f"<div class=pair>{''.join(panels)}</div>"
    if state := under(run, "retrieval/state/"):
        yield (
            "<p>Is the game in a similar state in the nearest frame of another episode of the same game? "
            "Share of state variables that agree, and that of a frame drawn at random.</p>"
            + page.scores_table(state, "state")
        )
    for encoder in found:
        if (run.workdir / "figures" / f"neighbours_{encoder}.png").is_file():
            yield page.drawn_by_run(
                run,
                f"neighbours_{encoder}.png",
                f"Nearest neighbours, {encoder} encoder.",
                f"<b>{page.escape(encoder)}</b>: a query at the left of each row, what is nearest beside it.",
                wide=True,
            )


def _over_k(values: Mapping[str, float], kind: str) -> tuple[list[int], list[float]]:
    """The k's, from small to large, and the share found at each."""
    found = {
        int(name.removeprefix(f"{kind}/top")): value
        for name, value in values.items()
        if name.startswith(f"{kind}/top")
    }
    return sorted(found), [found[k] for k in sorted(found)]


def _map(run: page.Run) -> Iterator[str]:
    for encoder in evaluations(run):
        if (run.workdir / "figures" / f"map_{encoder}.png").is_file():
            yield page.drawn_by_run(
                run,
                f"map_{encoder}.png",
                f"Features of single frames in the plane, {encoder} encoder.",
                f"<b>{page.escape(encoder)}</b>: t-SNE of the features of single frames, coloured by class.",
            )


def _finetuned(run: page.Run) -> Iterator[str]:
    if found := under(run, "finetune/"):
        yield "<p>Classification with the encoder's weights trained further; the best validated step.</p>"
        yield page.scores_table(found, "fine-tuning")


SECTIONS: tuple[tuple[str, str, Callable[[page.Run], Iterator[str]]], ...] = (
    ("layers", "Linear probes by layer", _layers),
    ("neighbours", "Nearest neighbours", _neighbours),
    ("map", "A map of the features", _map),
    ("finetune", "Fine-tuning", _finetuned),
    ("probe", "What the features know", pretraining.probe),
)
