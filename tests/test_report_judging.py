"""The page about an evaluation of a checkpoint, from hand-written results."""

import json

import numpy as np
import pytest

from ssl_jax.report import figures, judging, page


def scores(shift: float) -> dict[str, float]:
    return {
        "linear_probe/conv1/accuracy": 0.25 + shift,
        "linear_probe/conv2/accuracy": 0.5 + shift,
        "linear_probe/conv2/weight_decay": 0.01,
        "retrieval/frame/top10": 0.75 + shift,
        "retrieval/frame/top1": 0.5 + shift,
        "retrieval/state/top1": 0.4 + shift,
        "retrieval/state/chance": 0.2,
        "finetune/accuracy": 0.625 + shift,
        "state_probe/positions/mean_f1": 0.5 + shift,
    }


@pytest.fixture
def workdir(tmp_path):
    f1 = lambda value: {
        "mean_f1": value,
        "by_category": {"small_object_localization": value},
        "by_game": {"pong": value},
    }
    results = {
        "checkpoint": {"directory": "runs/<jigsaw>", "which": "best", "step": 1200},
        "label": "game",
        "evaluations": {
            "trained": scores(0.125),
            "random": scores(0.0),
            "majority": {"state_probe/positions/mean_f1": 0.1},
        },
        "probe": {"encoders": {"trained": f1(0.625), "random": f1(0.5), "majority": f1(0.1)}},
    }
    (tmp_path / "config.json").write_text(json.dumps({"experiment": "evaluate"}))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_measures_of_a_kind_by_encoder(workdir):
    found = judging.under(page.read(workdir), "retrieval/state/")
    assert found == {"trained": {"top1": 0.525, "chance": 0.2}, "random": {"top1": 0.4, "chance": 0.2}}


def test_page_names_the_checkpoint_and_its_scores(workdir):
    written = page.build(workdir).read_text()
    assert "runs/&lt;jigsaw&gt;, at step 1,200; classes: game" in written
    assert written.count("<section") == 6  # a map was not drawn; settings and the command come last
    for name in ("linear_probe.png", "retrieval_frame.png", "probe_by_category.png"):
        assert (workdir / "figures" / name).is_file()
    row = written.partition("<th scope=row>conv2</th>")[2].partition("</tr>")[0]
    assert row == "<td>0.625</td><td>0.500</td><td class=up>▲\N{NO-BREAK SPACE}+0.125</td>"


def test_curves_over_k_go_from_small_to_large(workdir):
    frames = judging.under(page.read(workdir), "retrieval/")["random"]
    assert judging._over_k(frames, "frame") == ([1, 10], [0.5, 0.75])


def test_a_page_of_an_unfinished_evaluation(workdir):
    (workdir / "results.json").unlink()
    assert "This run has not finished" in page.build(workdir).read_text()


def test_a_map_has_a_colour_and_a_name_for_each_class():
    label = np.arange(40) % 8
    drawn = figures.scatter(
        np.random.default_rng(0).normal(size=(40, 2)), label, [f"game {i}" for i in range(8)]
    )
    axes = drawn.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"game {i}" for i in range(8)]
    assert [len(points.get_offsets()) for points in axes.collections] == [5] * 8
