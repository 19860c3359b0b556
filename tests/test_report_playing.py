"""The pages about game-playing runs: one run, and several compared."""

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_report import CHROMIUM, Page, in_a_browser, text_of

from ssl_jax.evaluation import atari_return
from ssl_jax.report import comparison, console, figures, page
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime.errors import InputError

STEPS = 40_000  # agent steps
PAPER = f"{Path(__file__).parents[1] / 'configs' / 'dueling_dqn.py'}:paper,aux=sequence"
# As it is written to config.json: without tuples.
CONFIG = json.loads(json.dumps(config_lib.load(PAPER, {"train.agent_steps": str(STEPS)}).to_dict()))
PROTOCOL = CONFIG["protocol"]
COMMAND = "python -m ssl_jax.main --config=configs/dueling_dqn.py:game=Pong,aux=<b>sequence</b>"


def metric_lines(key: np.random.Generator, seeds: int) -> list[dict]:
    lines = []
    for step in range(400, STEPS + 1, 400):
        skill = 1 / (1 + np.exp(-(step - 20_000) / 4000))
        line = {
            "step": step,
            "train/q_loss": 0.02 + 0.01 * key.random(),
            "train/td_error": 0.1,
            "train/q_value": 1.5 * skill + 0.1 * key.normal(),
            "train/gradient_norm": 0.4,
            "train/epsilon": max(0.05, 1 - step / 20_000),
            "train/episodes": step // 800,
            "auxiliary/loss": 3.2 - 2 * skill,
            "auxiliary/accuracy": 0.04 + 0.7 * skill,
            "gradient/q_norm": 0.1 * np.exp(0.3 * key.normal()),
            "gradient/auxiliary_norm": 2 * np.exp(0.3 * key.normal()),
            "gradient/cosine": 0.1 * key.normal(),
            "time/agent_steps_per_second": 412 + key.normal(),
            "time/environment_wait_share": 0.123,
        }
        if step % 800 == 0:  # in the other lines no episode ended
            line |= {"train/episode_return": -20.5 + 35 * skill + key.normal(), "train/episode_length": 900}
        else:
            line |= {"train/episode_return": None}
        if step % 4000 == 0:
            mean = -20.7 + 38 * skill
            line |= {"eval/return_mean": mean, "eval/return_low": mean - 1, "eval/return_high": mean + 1}
            line |= {"eval/best_return": mean}
            line |= {f"eval/return_seed_{i}": mean + i for i in range(seeds) if seeds > 1}
        lines.append(line)
    return lines


def score(mean: float, step: int | list[int], episodes: int = 100) -> dict:
    names = ("std", "median", "min", "max")
    ends = {"return_mean": mean, "return_low": mean - 0.516, "return_high": mean + 0.5}
    others = {f"return_{name}": 1.0 for name in names}
    over = {"interval_over": "episodes", "seeds": 1}
    return {"step": step, **ends, **others, **over, "episodes": episodes, "returns": [[mean] * 3]}


def results(seeds: int, protocol: dict) -> dict:
    best_step = 36_000 if seeds == 1 else [36_000, 40_000, 28_000][:seeds]
    agents = {"last": score(16.456, STEPS), "best": score(17.5, best_step), "random": score(-20.714, 0)}
    scores = {"protocol": protocol | {"frames_trained": 4 * STEPS}, "agents": agents}
    scores["reference"] = atari_return.REFERENCE[protocol["game"]]
    if seeds > 1:
        over = {"return_low": 11.25, "return_high": 18.0, "interval_over": "seeds", "seeds": seeds}
        agents |= {name: agents[name] | over for name in ("last", "best")}
    return {
        "command": COMMAND,
        "protocol": CONFIG,
        "versions": {"jax": "0.10.2"},
        "device": "1 x cpu",
        "seed": 0,
        "wall_seconds": 7384.0,
        "seconds": {"learn": 5000.0},
        "final": {"eval/return_mean": 16.456},
        "scores": scores,
        "auxiliary": {"name": "sequence", "num_classes": 24, "schedule": "alternate"},
    }


def draw_pong(n: int, height: int = 84) -> np.ndarray:
    """Frames uint8 [n, 84, 84] in which a ball flies past two paddles."""
    frames = np.full((n, height, height), 87, np.uint8)
    for t, frame in enumerate(frames):
        frame[:14] = 50
        frame[30 + t % 20 : 40 + t % 20, 8:10] = 140
        frame[60 - t % 30 : 70 - t % 30, 74:76] = 160
        frame[20 + 2 * t % 60 : 23 + 2 * t % 60, 12 + 3 * t % 58 : 14 + 3 * t % 58] = 236
    return frames


def make_run(path: Path, *, seeds: int = 1, finished: bool = True, lines=None, **changes) -> Path:
    """A work directory as `experiments.dueling_dqn` leaves it, with invented data.

    Args:
      path: where.
      seeds: agents trained.
      finished: there are results and pictures.
      lines: of metrics; made up if not given.
      **changes: to the protocol.
    """
    key = np.random.default_rng(0)
    protocol = PROTOCOL | changes
    path.mkdir(parents=True)
    config = CONFIG | {"protocol": protocol, "num_seeds": seeds}
    (path / "config.json").write_text(json.dumps(config))
    lines = metric_lines(key, seeds) if lines is None else lines
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (path / "results.json").write_text(json.dumps(results(seeds, protocol)))
        (path / "figures").mkdir()
        stacks = np.stack([draw_pong(20)[i : i + 4] for i in (0, 5, 9, 14)]).transpose(0, 2, 3, 1)
        orders = np.stack([key.permutation(4) for _ in range(4)])
        inputs = np.take_along_axis(stacks, orders[:, None, None, :], axis=3)
        drawn = figures.stacks(stacks, inputs, np.array([3, 23, 0, 11]))
        (path / "figures" / "stacks.png").write_bytes(figures.png(drawn))
        (path / "figures" / "episode.gif").write_bytes(figures.gif(draw_pong(50), 15, scale=4))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "pong")


@pytest.fixture(scope="module")
def report(run) -> Path:
    return page.build(run)


def test_page_has_every_section_and_loads_nothing(report):
    source = report.read_text()
    parsed = Page(source)
    assert parsed.ids == [
        "summary",
        "curves",
        "auxiliary",
        "scores",
        "stacks",
        "episode",
        "config",
        "repeat",
    ]
    assert "script" not in parsed.tags
    assert all(resource.startswith(("data:", "#")) for resource in parsed.resources)
    assert "<b>sequence" not in source
    assert len(parsed.images) == 6 + 4 + 2
    (film,) = [image for image in parsed.images if image["src"].startswith("data:image/gif;base64,")]
    assert (film["width"], film["height"]) == ("336", "336")
    written = {path.name for path in (report.parent / "figures").iterdir()}
    assert written == {
        "scores.png",
        "training_score.png",
        "q_loss.png",
        "q_value.png",
        "epsilon.png",
        "throughput.png",
        "auxiliary_accuracy.png",
        "auxiliary_loss.png",
        "gradient_norms.png",
        "gradient_cosine.png",
        "stacks.png",
        "episode.gif",
    }


def test_numbers_appear_as_formatted(report):
    text = text_of(report)
    assert "Dueling double DQN on Pong with the auxiliary task sequence (alternate)." in text
    assert "Score, last agent 16.46 15.94 to 16.96 over 100 episodes" in text
    assert "Score, best agent 17.50 16.98 to 18.00 over 100 episodes" in text
    assert "Random agent −20.71 −21.23 to −20.21 over 100 episodes" in text
    assert "Human −3.00 the paper's; protocol not stated" in text
    assert "Frames trained 160,000 40,000 agent steps of one agent" in text
    assert "Wall time 2 h 3 min" in text
    assert re.search(r"41\d agent steps/s", text)
    assert "12.3 % of the time went into waiting for the games" in text
    assert "among 24 classes" in text
    assert "last agent 16.46 15.94 to 16.96 100 episodes 40,000" in text
    assert "best agent 17.50 16.98 to 18.00 100 episodes 36,000" in text
    paper = text.partition("From the paper, protocol not stated")[2]
    assert paper.startswith(" random agent −21.00 – – – human −3.00 – – – world record 21.00 – – – DQN 20.00")
    assert "DQN with sequence 18.20 – – –" in paper
    assert "the paper does not state the protocol of its scores" in text
    assert "frames_trained 160000" in text
    assert "This is one run" in text
    assert "has not finished" not in text


def test_several_seeds_carry_the_interval_over_seeds(tmp_path):
    text = text_of(page.build(make_run(tmp_path / "run", seeds=3)))
    assert "sequence (alternate), 3 seeds." in text
    assert "Score, last agent 16.46 11.25 to 18.00 over 3 seeds of 100 episodes" in text
    assert "best agent 17.50 11.25 to 18.00 3 seeds of 100 episodes 28,000 to 40,000" in text
    assert "random agent −20.71 −21.23 to −20.21 100 episodes 0" in text
    assert "This is one run" not in text


def test_a_run_that_goes_on_shows_what_there_is(tmp_path):
    workdir = make_run(tmp_path / "run", finished=False)
    text = text_of(page.build(workdir))
    assert "This run has not finished" in text
    # -20.7 + 38 / (1 + exp(-5)) at the last evaluation, +- 1
    assert "Score, last agent 17.05 16.05 to 18.05" in text
    assert "Agent steps 40,000" in text
    assert "best agent 17.05" in text
    assert "so far; the final ones are still to come" in text
    assert "The run has not drawn figures/stacks.png" in text
    assert "the paper" not in text.partition("Scores Mean raw")[2]
    assert "Wall time" not in text


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 10}],
        [{"step": 10, "train/q_loss": None, "eval/return_mean": None, "train/episode_return": 3.0}],
        [{"step": 10, "eval/return_mean": 1.0}],  # without an interval
    ],
)
def test_missing_and_nan_numbers_break_nothing(tmp_path, lines):
    workdir = make_run(tmp_path / "run", finished=False, lines=lines)
    text = text_of(page.build(workdir))
    known = bool(lines) and bool(lines[0].get("eval/return_mean"))
    assert ("Score, last agent 1.00" in text) == known
    assert ("No metrics have been logged yet." in text) == (not known)
    assert "nan" not in text.lower()
    terminal = Console(file=io.StringIO())
    console.print_results(workdir, terminal)
    other = make_run(tmp_path / "other", finished=False, lines=lines)
    assert comparison.build([workdir, other], tmp_path / "both.html").is_file()


def test_without_a_task_there_is_no_section_about_one(tmp_path):
    workdir = make_run(tmp_path / "run", finished=False)
    config = CONFIG | {
        "auxiliary": {"name": "none", "schedule": "alternate"},
        "network": {"dueling": False},
    }
    (workdir / "config.json").write_text(json.dumps(config))
    report = page.build(workdir)
    assert "auxiliary" not in Page(report.read_text()).ids
    assert "Double DQN on Pong without an auxiliary task." in text_of(report)


def test_an_experiment_without_a_page_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"experiment": "dueling_dqm"}')
    with pytest.raises(InputError, match="did you mean 'dueling_dqn'"):
        page.build(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [(-20.714, "−20.71"), (1.25, "1.25"), (864.0, "864.0"), (12345.67, "12,345.7"), (None, "–")],
)
def test_points(value, text):
    assert page.points(value) == text
    assert page.points(float("nan")) == "–"


def test_series_over_another_metric_leaves_out_what_is_not_a_number(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    lines = [
        {"step": 1, "episodes": 0, "score": None},
        {"step": 3, "episodes": 5, "score": 2.0},
        {"step": 2, "episodes": 4, "score": 1.0},
        {"step": 4, "score": 9.0},
        {"step": 3, "episodes": 6, "score": 3.0},  # again, after a resume
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert page.read(tmp_path).series("score", "episodes") == ([4, 6], [1.0, 3.0])


def test_console_prints_agents_and_paper(run, report):
    terminal = Console(width=88, record=True, file=io.StringIO())
    console.print_results(run, terminal)
    text = terminal.export_text()
    assert "Scores on Pong" in text
    assert re.search(r"last agent\W+16\.46\W+15\.94 to 16\.96\W+100", text)
    assert re.search(r"random agent\W+−20\.71\W", text)
    assert re.search(r"DQN with rotation \(paper\)\W+−20\.10", text)
    assert "over seeds" not in text
    assert f"Report: {report}" in text


# Figures.


def test_returns_hold_the_given_data_and_only_references_in_range():
    figure = figures.returns(
        {"a": ([0, 10], [0.0, 8.0]), "b": ([0, 10], [1.0, 2.0])},
        bands={"a": ([0, 10], [-1.0, 7.0], [1.0, 9.0])},
        seeds=[([0, 10], [0.5, 8.5])],
        references={"random": -2.0, "human": 19.0, "record": 864.0},  # the data span 10, from -1 to 9
    )
    (axes,) = figure.axes
    seed, a, b, *dashed = axes.lines
    np.testing.assert_array_equal(seed.get_xydata(), [[0, 0.5], [10, 8.5]])
    np.testing.assert_array_equal(a.get_xydata(), [[0, 0], [10, 8]])
    np.testing.assert_array_equal(b.get_ydata(), [1, 2])
    assert [line.get_ydata()[0] for line in dashed] == [-2.0, 19.0]
    assert [text.get_text() for text in axes.texts] == ["random", "human"]
    assert {tuple(point) for point in axes.collections[0].get_paths()[0].vertices} >= {(0, -1), (10, 9)}
    assert axes.get_ylim()[0] < -2
    assert axes.get_ylim()[1] > 19


def test_interval_far_wider_than_the_scores_does_not_flatten_them():
    """As Student's t interval over two seeds, 12.7 standard errors to each side."""
    figure = figures.returns(
        {"a": ([0, 10], [0.0, 8.0])}, bands={"a": ([0, 10], [-60.0, -50.0], [60.0, 66.0])}
    )
    assert figure.axes[0].get_ylim() == (-8, 16)


def test_curves_take_another_count_and_a_logarithmic_scale():
    (axes,) = figures.curves({"a": ([0, 1], [1, 10])}, ylabel="y", xlabel="episodes", log=True).axes
    assert (axes.get_xlabel(), axes.get_yscale()) == ("episodes", "log")


def test_seven_lines_look_different():
    figure = figures.curves({str(i): ([0, 1], [i, i]) for i in range(7)}, ylabel="y")
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 7


def test_stacks_show_frames_motion_and_inputs():
    s = np.zeros((2, 8, 6, 4), np.uint8)
    s[0, 0, 0] = (10, 40, 255, 20)
    inputs = 255 - s
    figure = figures.stacks(s, inputs, np.array([23, 0]))
    frames, task = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:2])
    assert frames.shape == (8, 5 * 6 + 4 * 4)
    np.testing.assert_allclose(frames[0, ::10] * 255, [10, 40, 255, 20, 245])  # the last is the motion
    np.testing.assert_array_equal(frames[:, 6:10], 1)  # the gap
    np.testing.assert_allclose(task[0, ::10] * 255, [245, 215, 0, 235])
    assert [text.get_text() for text in figure.axes[0].texts] == ["t−3", "t−2", "t−1", "t", "motion"]
    assert [axes.get_title() for axes in figure.axes] == ["", "class 23", "", "class 0"]
    assert len(figures.stacks(s, None, None).axes) == 2


def film(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_gif_plays_every_frame_forever_at_its_speed():
    frames = draw_pong(40)
    picture = film(figures.gif(frames, frames_per_second=15, scale=2))
    assert picture.n_frames == 40
    assert picture.size == (168, 168)
    assert picture.info["loop"] == 0
    total = 0
    for i, frame in enumerate(frames):
        picture.seek(i)
        total += picture.info["duration"]
        shown = np.asarray(picture.convert("L"))[::2, ::2].astype(int)
        assert np.abs(shown - frame).max() <= 2
    assert total == pytest.approx(40 / 15 * 1000, abs=5)


def test_gif_shows_equal_frames_longer_and_takes_colours():
    frames = np.zeros((6, 4, 5, 3), np.uint8)
    frames[3:] = (200, 72, 40)
    picture = film(figures.gif(frames, frames_per_second=10))
    assert picture.n_frames == 2
    assert picture.info["duration"] == 300
    picture.seek(1)
    assert picture.info["duration"] == 300
    assert np.abs(np.asarray(picture.convert("RGB"), int) - (200, 72, 40)).max() <= 4
    assert film(figures.gif(frames[:1], 15)).n_frames == 1


# Comparison.


@pytest.fixture(scope="module")
def compared(tmp_path_factory, run) -> Path:
    """A finished run beside one of the same protocol."""
    base = tmp_path_factory.mktemp("compared")
    other = make_run(base / "other", seeds=3)
    return comparison.build([run, other], base / "pages" / "pong.html")


def test_comparison_shows_both_runs(compared):
    text = text_of(compared)
    assert "2 runs of Pong, compared." in text
    row = "16.46 15.94 to 16.96 over 100 episodes 17.50 16.98 to 18.00 over 100 episodes 40,000 2 h 3 min"
    assert f"pong sequence (alternate) {row}" in text
    assert "other sequence (alternate) 16.46 11.25 to 18.00 over 3 seeds of 100 episodes" in text
    assert "human −3.00" in text
    assert text.count(COMMAND) == 2
    parsed = Page(compared.read_text())
    assert parsed.ids == ["summary", "scores", "curves", "protocols", "repeat"]
    assert all(resource.startswith(("data:", "#")) for resource in parsed.resources)
    files = {path.name for path in compared.parent.iterdir()}
    assert files == {"pong.html", "pong_scores.png", "pong_training.png"}
    embedded = {base64.b64decode(image["src"].partition(",")[2]) for image in parsed.images}
    assert (compared.parent / "pong_training.png").read_bytes() in embedded


def test_comparison_is_silent_where_protocols_are_equal(compared):
    assert "WARNING" not in compared.read_text()


def test_comparison_warns_of_each_pair_whose_protocols_differ(tmp_path, run, capsys):
    sticky = make_run(tmp_path / "sticky", sticky_actions=0.25, noop_max=1)
    going_on = make_run(tmp_path / "going_on", finished=False, lines=[{"step": 1000}])
    text = text_of(comparison.build([run, sticky, going_on], tmp_path / "pong.html"))
    sentences = [
        "Scores of pong and sticky do not compare, because their protocols differ: sticky_actions is 0.0 "
        "and 0.25; noop_max is 30 and 1.",
        "Scores of pong and going_on do not compare, because their protocols differ: frames_trained is "
        "160,000 and 4,000.",
        "Scores of sticky and going_on do not compare, because their protocols differ: sticky_actions is "
        "0.25 and 0.0; noop_max is 1 and 30; frames_trained is 160,000 and 4,000.",
    ]
    printed = capsys.readouterr().err.splitlines()
    assert printed == [f"WARNING: {sentence}" for sentence in sentences]
    assert text.count("WARNING.") == 3
    for sentence in sentences:
        assert f"WARNING. {sentence}" in text
    assert "not finished" in text


def test_runs_of_the_same_name_are_told_apart_by_their_paths(tmp_path, run):
    other = make_run(tmp_path / "pong", finished=False)
    text = text_of(comparison.build([run, other], tmp_path / "page.html"))
    assert f"{run} sequence" in text
    assert f"{other} sequence" in text


def test_what_does_not_compare_is_refused(tmp_path, run):
    breakout = make_run(tmp_path / "breakout", finished=False, game="Breakout")
    jigsaw = tmp_path / "jigsaw"
    jigsaw.mkdir()
    (jigsaw / "config.json").write_text('{"experiment": "pretrain"}')
    for workdirs, message in (
        ([run, breakout], "Runs of different games do not compare: pong plays Pong, breakout plays Breakout"),
        ([run, jigsaw], "is a run of the experiment 'pretrain'"),
        ([run, run], "is given twice"),
        ([run], "at least two runs, not 1"),
        ([run, tmp_path / "nowhere"], "There is no work directory"),
    ):
        with pytest.raises(InputError, match=message) as error:
            comparison.build(workdirs, tmp_path / "page.html")
        assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("page*"))
    with pytest.raises(InputError, match="is a directory"):
        comparison.build([run, breakout], tmp_path)


def test_comparison_runs_from_the_command_line(tmp_path, run):
    other = make_run(tmp_path / "other", finished=False)
    command = [sys.executable, "-m", "ssl_jax.report.comparison", f"--output={tmp_path / 'page.html'}"]
    done = subprocess.run([*command, f"--runs={run},{other}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"Comparison: {tmp_path / 'page.html'}\n")
    done = subprocess.run([*command, f"--runs={run}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: A comparison needs at least two runs, not 1: --runs=runs/a,runs/b.\n"


@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser `chromium`")
def test_in_a_browser_the_pages_fit_wide_and_narrow_windows(report, compared, tmp_path):
    for path, images in ((report, 12), (compared, 2)):
        for wide, narrow in in_a_browser(path, tmp_path).values():
            assert wide[:3] == [1280, 1280, images]
            assert narrow[:3] == [420, 420, images]
