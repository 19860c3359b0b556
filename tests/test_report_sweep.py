"""The table and the page of a sweep, and comparisons of runs of pre-training: numbers by hand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_report import CHROMIUM, Page, in_a_browser, text_of

from ssl_jax.report import comparison, figures, sweep
from ssl_jax.runtime.errors import InputError

PLAYERS = ("uniform", "policy_gradient", "exp3")
TASKS = {"spatial": ("spatial",), "both": ("spatial", "temporal")}
SEEDS = (0, 1, 2)
# By seed; pretext accuracy of the spatial task, the same in both rows of a player.
ACCURACY = {"uniform": (0.40, 0.50, 0.60), "policy_gradient": (0.42, 0.53, 0.61), "exp3": (0.40, 0.40, 0.40)}
COMMAND = "python -m launch.sweep --config=configs/<b>ablation</b>.py"
STEPS = (100, 200, 300)


def name_of(tasks: str, player: str, seed: int) -> str:
    return f"tasks={tasks}-policy={player}-seed={seed}"


def make_run(path: Path, tasks: str, player: str, seed: int, *, finished: bool = True, **changes) -> Path:
    """A work directory as `experiments.pretrain` leaves it, with invented data.

    The player draws twice as much from the two hardest of eight classes as it would uniformly.
    """
    path.mkdir(parents=True)
    accuracy = ACCURACY[player][seed]
    section = {"puzzle": {"tile": [32, 32]}, "selection": {"name": player}}
    config = {"experiment": "pretrain", "seed": seed, "train": {"steps": 300, "batch_size": 64}}
    config |= dict.fromkeys(TASKS[tasks], section)
    lines = [
        {"step": step, **{f"val/{task}/accuracy": accuracy * step / 300 for task in TASKS[tasks]}}
        for step in STEPS
    ]
    looks = [
        {
            "step": step,
            "task": task,
            "accuracy": list(np.linspace(0.1, 0.8, 8)),
            "probability": [0.25, 0.25] + [0.5 / 6] * 6,
            "group": [0, 0, 0, 0, 1, 1, 1, 1 + seed],
        }
        for step in STEPS
        for task in TASKS[tasks]
        if player != "uniform"
    ]
    (path / "config.json").write_text(json.dumps(config))
    for file, rows in (("metrics.jsonl", lines), ("selection.jsonl", looks)):
        (path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        final = {"val/accuracy": 0.9, "time/policy_overhead": 0.031, "retrieval/state/top1": 0.25}
        for task in TASKS[tasks]:
            final |= {f"val/{task}/accuracy": accuracy, f"val/{task}/worst_group_accuracy": accuracy / 2}
            final[f"val/{task}/chance"] = 0.125
        encoders = {"trained": {"mean_f1": 0.5 + 0.01 * seed}, "random": {"mean_f1": 0.52}}
        # Time teaches what moves, 0.03 (0.02 to 0.04); space does not.
        moving = 0.25 + (0.02 + 0.01 * seed if tasks == "both" else 0)
        encoders["trained"]["by_category"] = {"small_object_localization": moving}
        encoders["random"]["by_category"] = {"small_object_localization": 0.25}
        results = {
            "command": "python -m ssl_jax.main",
            "device": "CPU of a kind (2 cores)",
            "versions": {"jax": "0.10.2"},
            "wall_seconds": 100.0 + seed,
            "final": final,
            "probe": {"encoders": encoders},
        }
        (path / "results.json").write_text(json.dumps(results | changes))
    return path


def make_sweep(
    path: Path, *, rows: tuple[str, ...] = ("spatial",), missing: tuple[str, ...] = (), **changes
) -> Path:
    """A sweep's work directory, as `launch.sweep` leaves it; the runs named as missing have no results."""
    listed = []
    for seed in SEEDS:
        for player in PLAYERS:
            for tasks in rows:
                name = name_of(tasks, player, seed)
                make_run(path / name, tasks, player, seed, finished=name not in missing, **changes)
                values = {
                    "policy": player,
                    "tasks": tasks,
                }  # the compared axis last, whatever the file's order
                listed.append({"name": name, "values": values, "seed": seed, "command": f"run {name}"})
    facts = {"command": COMMAND, "compare": "policy", "baseline": "uniform", "parallel": 2, "runs": listed}
    (path / "sweep.json").write_text(json.dumps(facts))
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    workdir = make_sweep(tmp_path_factory.mktemp("sweeps") / "ablation", rows=tuple(TASKS))
    sweep.build(workdir)
    return workdir


def rows_of(workdir: Path) -> dict[tuple[str, str], dict]:
    table = json.loads((workdir / "table.json").read_text())
    return {tuple(row["values"].values()): row for row in table["rows"]}


# Numbers.


def test_what_was_learned_by_category_also_along_another_axis(workdir):
    learned = "learned/small_object_localization"
    rows = rows_of(workdir)
    found = rows["both", "exp3"]["measures"][learned]
    assert found["values"] == pytest.approx({"0": 0.02, "1": 0.03, "2": 0.04})
    half = 4.302653 * 0.01 / np.sqrt(3)  # as above
    assert (found["low"], found["high"]) == pytest.approx((0.03 - half, 0.03 + half), abs=1e-6)
    # The players learned the same; of the tasks, one learned more.
    assert rows["both", "exp3"]["difference_to_baseline"][learned]["mean"] == pytest.approx(0)
    page = sweep.build(workdir, "tasks", "spatial")
    assert page == workdir / "by_tasks" / "report.html"
    assert "What the features learned" in text_of(page)
    rows = rows_of(page.parent)
    assert list(rows) == [(player, tasks) for player in PLAYERS for tasks in TASKS]
    assert rows["exp3", "both"]["difference_to_baseline"][learned]["mean"] == pytest.approx(0.03)
    assert rows["exp3", "spatial"]["difference_to_baseline"] == {}
    text = (page.parent / "table.md").read_text().partition("# What the features learned")[2]
    assert "| exp3 | both | 3 | **+0.030 (+0.005 to +0.055)** |" in text
    assert "accuracy" not in text  # that is in the other table
    assert (page.parent / "figures").is_dir()
    assert json.loads((workdir / "table.json").read_text())["compare"] == "policy"  # the sweep's own stays


@pytest.mark.parametrize(
    ("compare", "baseline", "sentence"),
    [
        ("task", "spatial", "unknown axis of the sweep 'task', did you mean 'tasks'?"),
        (
            "tasks",
            "spacial",
            "unknown value of the axis 'tasks' for --baseline 'spacial', did you mean 'spatial'?",
        ),
    ],
)
def test_other_axes_are_checked(workdir, compare, baseline, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        sweep.build(workdir, compare, baseline)


def test_table_has_means_over_seeds_and_paired_differences(workdir):
    rows = rows_of(workdir)
    assert list(rows) == [(tasks, player) for tasks in TASKS for player in PLAYERS]
    accuracy = rows["spatial", "uniform"]["measures"]["val/spatial/accuracy"]
    # Deviation 0.1, quantile 4.302653 of two degrees of freedom.
    half = 4.302653 * 0.1 / np.sqrt(3)
    assert (accuracy["mean"], accuracy["n"]) == (pytest.approx(0.5), 3)
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    assert accuracy["values"] == {"0": 0.4, "1": 0.5, "2": 0.6}
    # Pairs 0.02, 0.03 and 0.01, which differ less than the seeds do.
    gain = rows["both", "policy_gradient"]["difference_to_baseline"]["val/temporal/accuracy"]
    half = 4.302653 * 0.01 / np.sqrt(3)
    assert gain["mean"] == pytest.approx(0.02)
    assert (gain["low"], gain["high"]) == pytest.approx((0.02 - half, 0.02 + half), abs=1e-6)
    assert not sweep.leaves_zero_out(gain)
    assert rows["spatial", "uniform"]["difference_to_baseline"] == {}
    assert "val/temporal/accuracy" not in rows["spatial", "exp3"]["measures"]
    probe = rows["spatial", "exp3"]["measures"]["probe/trained_minus_random"]
    assert probe["mean"] == pytest.approx(-0.01)
    assert probe["values"] == pytest.approx({"0": -0.02, "1": -0.01, "2": 0.0})


def test_only_equal_seeds_make_pairs(tmp_path):
    missing = (name_of("spatial", "uniform", 1), name_of("spatial", "policy_gradient", 2))
    workdir = make_sweep(tmp_path / "ablation", missing=missing)
    text = text_of(sweep.build(workdir))
    row = rows_of(workdir)["spatial", "policy_gradient"]
    assert (row["seeds"], row["seeds_missing"]) == ([0, 1], [2])
    assert row["difference_to_baseline"]["val/spatial/accuracy"]["values"] == pytest.approx({"0": 0.02})
    assert row["difference_to_baseline"]["val/spatial/accuracy"]["low"] is None
    assert "9 runs, 7 of them finished" in text
    assert "2 of 9 runs have no results" in text
    assert missing[0] in text


@pytest.mark.parametrize(
    ("low", "high", "clear"), [(0.1, 0.2, True), (-2.0, -1.0, True), (-1.0, 1.0, False), (None, None, False)]
)
def test_clear_of_zero(low, high, clear):
    assert sweep.leaves_zero_out({"low": low, "high": high}) == clear


def test_hard_share_is_a_quarter_under_a_uniform_draw():
    accuracy = np.random.default_rng(0).random((3, 8))
    np.testing.assert_allclose(sweep.hard_share(accuracy, np.full((3, 8), 1 / 8)), 0.25)
    accuracy = np.array([[0.9, 0.1, 0.5, 0.2, 0.9, 0.9, 0.9, 0.9]])
    probability = np.array([[0.0, 0.3, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1]])
    np.testing.assert_allclose(sweep.hard_share(accuracy, probability), 0.3 + 0.2)


def test_over_seeds_keeps_the_steps_that_all_have():
    steps, values = sweep.over_seeds([{1: 0.1, 2: 0.2, 3: 0.3}, {2: 0.4, 3: 0.6, 4: 0.8}])
    assert steps == [2, 3]
    np.testing.assert_array_equal(values, [[0.2, 0.3], [0.4, 0.6]])
    assert sweep.over_seeds([{1: 0.1}, {2: 0.2}])[0] == []


def test_numbers_that_are_missing_or_nan_are_left_out(tmp_path):
    workdir = make_sweep(
        tmp_path / "ablation", final={"val/spatial/accuracy": None}, probe={}, wall_seconds=None
    )
    text = text_of(sweep.build(workdir))
    assert "No run has finished yet" in text
    assert "nan" not in text.lower()
    assert rows_of(workdir)["spatial", "exp3"]["measures"] == {}


# What is written.


def test_many_labels_have_a_line_each_and_few_a_legend():
    scores = {"space": {f"player {i}": [0.1 * i, 0.2 * i] for i in range(6)}, "time": {"player 5": [0.7]}}
    (axes,) = figures.seeds(scores, xlabel="accuracy").axes
    named = [tick.get_text() for tick in axes.get_yticklabels()]
    assert named == ["space", *(f"player {i}" for i in range(6)), "time", "player 5"]
    assert axes.get_legend() is None
    dots = {tuple(np.round(place, 6)) for drawn in axes.collections for place in drawn.get_offsets()}
    assert {(0.5, 6.5), (1.0, 6.5), (0.7, 8.5)} <= dots  # player 5 in space, and in time
    few = {row: {name: of[name] for name in list(of)[:3]} for row, of in scores.items()}
    (axes,) = figures.seeds(few, xlabel="accuracy").axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["space", "time"]
    assert len(axes.get_legend().get_texts()) == 4


def test_a_name_of_three_lines_has_room_for_them():
    names = ["a", "player with.adjusted_logits=False and.with=independent and.more=words", *"bcd"]
    (axes,) = figures.seeds({"": {name: [0.5] for name in names}}, xlabel="accuracy").axes
    assert axes.get_yticklabels()[1].get_text().count("\n") == 2
    np.testing.assert_allclose(np.diff(axes.get_yticks()), [1.5, 1.5, 1, 1])


def test_a_high_legend_leaves_the_axes_their_height():
    def height(labels):
        return figures.curves({label: ([1, 2], [1, 2]) for label in labels}, ylabel="y").get_figheight()

    assert height(["a", "b"]) == figures.HEIGHT
    assert height([f"a long name of a player, number {i}" for i in range(9)]) > figures.HEIGHT + 1


def test_labels_leave_out_what_no_one_needs(tmp_path):
    def labels(*values):
        entries = [sweep.Entry(value, {"policy": value}, 0, "", None) for value in values]
        found = sweep.Sweep("", "", None, 1, tuple(entries), lambda name: tmp_path / name)
        return [found.label(value) for value in values]

    short = labels("uniform", "policy_gradient spatial.selection.period=16", "joint selection.period=16")
    assert short == ["uniform", "policy_gradient period=16", "joint period=16"]
    alike = ["policy_gradient spatial.selection.period=16", "policy_gradient temporal.selection.period=16"]
    assert labels(*alike) == alike


def test_dots_are_seeds_and_strokes_are_means(monkeypatch, tmp_path):
    drawn = {}
    seeds = figures.seeds
    keep = lambda *args, xlabel, **options: drawn.setdefault(xlabel, seeds(*args, xlabel=xlabel, **options))
    monkeypatch.setattr(figures, "seeds", keep)
    sweep.build(make_sweep(tmp_path / "ablation"))
    axes = drawn["spatial accuracy"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["tasks spatial"]
    by_label = {dots.get_label(): dots for dots in axes.collections}
    uniform = by_label["policy uniform"]
    np.testing.assert_allclose(np.sort(uniform.get_offsets()[:, 0]), sorted(ACCURACY["uniform"]))
    strokes = axes.collections[axes.collections.index(uniform) + 1].get_segments()
    np.testing.assert_allclose(strokes[0][:, 0], np.mean(ACCURACY["uniform"]))


def test_markdown(workdir):
    text = (workdir / "table.md").read_text()
    assert COMMAND in text
    assert "2 tasks × 3 policy × 3 seeds: 18 runs, 18 of them finished." in text
    assert (
        "Every run: 300 steps, batches of 64 of each task. CPU of a kind (2 cores). Up to 2 runs shared"
        in text
    )
    assert "95 % Student's t interval" in text
    heads = (
        "| tasks | policy | seeds | spatial accuracy, % | spatial worst group, % | temporal accuracy, % | "
        "temporal worst group, % | probe F1 | probe F1, trained − random | retrieval state top-1, % | "
        "policy's extra time, % | wall time, s |"
    )
    assert heads in text
    assert "| spatial | uniform | 3 | 50.0 (25.2 to 74.8) | 25.0 (12.6 to 37.4) | – | – | 0.510" in text
    assert "## Difference to uniform" in text
    # Of either row and other player: two or four accuracies, two of the probe, one of retrieval.
    assert "Of 24 intervals, times apart, 0 leave zero out" in text
    assert "| both | policy_gradient | 3 | +2.0 (−0.5 to +4.5) | +1.0 (−0.2 to +2.2) |" in text
    results = text.partition("# What the features learned")[0]
    assert all(line.count("|") in (0, 12, 13) for line in results.splitlines())  # no wall times compared


def test_a_difference_clear_of_zero_is_bold(tmp_path, monkeypatch):
    monkeypatch.setitem(ACCURACY, "exp3", (0.30, 0.41, 0.50))
    workdir = make_sweep(tmp_path / "ablation")
    page = sweep.build(workdir)
    # Mean -0.0967, half-width 4.302653 * 0.005774 / sqrt(3) = 0.0143.
    assert "| spatial | exp3 | 3 | **−9.7 (−11.1 to −8.2)** |" in (workdir / "table.md").read_text()
    assert "Of 10 intervals, times apart, 2 leave zero out (bold)" in text_of(page)
    assert "<b>−9.7</b><br><small>−11.1 to −8.2</small>" in page.read_text()


def test_page_has_every_section_and_loads_nothing(workdir):
    source = (workdir / "report.html").read_text()
    parsed = Page(source)
    assert parsed.ids == [
        "summary",
        "table",
        "differences",
        "learned",
        "curves",
        "choices",
        "configs",
        "repeat",
    ]
    assert "script" not in parsed.tags
    assert all(resource.startswith(("data:", "#")) for resource in parsed.resources)
    assert "<b>ablation" not in source
    assert COMMAND in parsed.text
    assert "run tasks=both-policy=exp3-seed=2" in parsed.text
    assert 'spatial exp3 spatial.selection.name: "uniform" -> "exp3"' in parsed.text
    assert "spatial uniform no difference" in parsed.text
    written = {path.stem for path in (workdir / "figures").iterdir()}
    curves = {"spatial-val_spatial_accuracy", "both-val_spatial_accuracy", "both-val_temporal_accuracy"}
    hard = {"hard-spatial", "hard-both-spatial", "hard-both-temporal"}
    scores = ("val_spatial_accuracy", "val_temporal_accuracy", "probe_trained_minus_random")
    dots = {f"seeds-{score}" for score in (*scores, "retrieval_state_top1")}
    groups = {f"groups-{what[5:]}-{player}" for what in hard for player in PLAYERS[1:]}
    assert written == curves | hard | groups | dots
    assert len(parsed.images) == len(written)
    assert "WARNING" not in parsed.text


def test_curves_are_means_in_bands(monkeypatch, tmp_path):
    drawn = []
    curves = figures.curves
    monkeypatch.setattr(figures, "curves", lambda *args, **kw: drawn.append(curves(*args, **kw)) or drawn[-1])
    sweep.build(make_sweep(tmp_path / "ablation"))
    axes = drawn[0].axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_allclose(lines["uniform"], [[100, 0.5 / 3], [200, 1 / 3], [300, 0.5]])
    assert lines["chance"][0][1] == 0.125
    band = axes.collections[0].get_paths()[0].vertices
    assert {(300, 0.4), (300, 0.6)} <= {(x, round(y, 6)) for x, y in band}
    assert axes.get_ylim()[1] >= 0.6
    (hard,) = (
        figure.axes[0] for figure in drawn if figure.axes[0].get_ylabel() == "spatial · hardest quarter"
    )
    by_label = {line.get_label(): line.get_ydata() for line in hard.lines}
    np.testing.assert_allclose(by_label["exp3"], 0.5)
    np.testing.assert_allclose(by_label["uniform draw"], 0.25)
    assert len(by_label["uniform"]) == 0  # it never looks, and keeps its colour
    assert {line.get_color() for line in hard.lines[:3]} == {line.get_color() for line in axes.lines[:3]}


def test_runs_made_with_different_versions_are_warned_of(tmp_path):
    workdir = make_sweep(tmp_path / "ablation")
    path = workdir / name_of("spatial", "exp3", 1) / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"versions": {"jax": "0.12.0"}}))
    assert "jax is 0.10.2 (8 runs), 0.12.0 (1 runs)" in text_of(sweep.build(workdir))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "it has no sweep.json"), ("{", "is damaged"), ("{}", "is damaged"), ("[]", "is damaged")],
)
def test_what_is_no_sweep_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        sweep.build(tmp_path)
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"sweep.json"}


# Runs that no sweep made.


def test_comparison_of_runs_of_pretraining(tmp_path):
    first = make_run(tmp_path / "a", "spatial", "uniform", 0)
    other = make_run(tmp_path / "b", "both", "exp3", 1, finished=False)
    text = text_of(comparison.build([first, other], tmp_path / "out" / "page.html"))
    assert "2 runs of pre-training, 1 of them finished." in text
    assert re.search(r"a 1 40\.0 20\.0 0\.500 −0\.020 25\.0 3\.1 100 ", text)
    assert Page((tmp_path / "out" / "page.html").read_text()).ids == [
        "summary",
        "table",
        "learned",
        "curves",
        "choices",
        "configs",
        "repeat",
    ]
    assert (tmp_path / "out" / "page_val_spatial_accuracy.png").is_file()


def test_comparison_rebuilds_a_sweep_from_the_command_line(tmp_path):
    workdir = make_sweep(tmp_path / "ablation")
    command = [sys.executable, "-m", "ssl_jax.report.comparison", f"--sweep={workdir}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"Comparison: {workdir / 'report.html'}\n")
    assert (workdir / "table.md").is_file()


@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser `chromium`")
def test_in_a_browser_the_page_fits_wide_and_narrow_windows(workdir, tmp_path):
    for wide, narrow in in_a_browser(workdir / "report.html", tmp_path).values():
        assert wide[:2] == [1280, 1280]
        assert narrow[:2] == [420, 420]
