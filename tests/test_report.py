import base64
import html
import io
import json
import re
import shutil
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ssl_jax.report import console, figures, page
from ssl_jax.runtime.errors import InputError

P, K, STEPS = 24, 6, 3000

CONFIG = {
    "seed": 0,
    "data": {"name": "atari_frames", "batch_size": 64, "games": ["pong", "<b>breakout</b>"]},
    "spatial": {
        "puzzle": {"grid": [3, 3]},
        "permutations": {"num": P, "method": "code", "path": None},
        "selection": {"name": "policy_gradient", "groups": K, "period": 100},
    },
    "encoder": {"name": "compact", "features": [32, 64, 128]},
}
COMMAND = "python -m ssl_jax.main --config=configs/jigsaw_rl.py --config.note='<script>alert(1)'"
CATEGORIES = ("agent_localization", "small_object_localization", "score_clock_lives_display")
GAMES = ("pong", "breakout", "space_invaders", "ms_pacman")


def draw_game(key: np.random.Generator, height: int = 210, width: int = 160) -> np.ndarray:
    """A picture with bricks, a paddle, a ball and a score, uint8 [H, W, 3]."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:] = key.integers(0, 60, 3)
    image[:14] = 142
    for row in range(5):
        for brick in np.flatnonzero(key.random(16) < 0.8):
            color = np.array([200 - 12 * row, 72 + 25 * row, 60])
            image[50 + 8 * row : 56 + 8 * row, 10 * brick : 10 * brick + 9] = color
    x, y = key.integers(10, width - 20), key.integers(100, height - 30)
    image[y : y + 5, x : x + 4] = 236
    image[height - 16 : height - 11, x - 8 : x + 16] = (200, 72, 72)
    image[2:12, 60 : 60 + key.integers(4, 40)] = 220
    return image


def cut(key: np.random.Generator, image: np.ndarray, permutation: np.ndarray) -> np.ndarray:
    """Shuffled tiles of a 3x3 grid, each normalised by itself, float [9, 48, 48, 3]."""
    cells = [image[5 + 66 * (i // 3) :, 2 + 52 * (i % 3) :][:48, :48] for i in range(9)]
    tiles = np.stack(cells)[permutation] + key.normal(0, 4, (9, 48, 48, 3))
    return (tiles - tiles.mean((1, 2, 3), keepdims=True)) / tiles.std((1, 2, 3), keepdims=True)


def metric_lines(key: np.random.Generator, permutations: int, groups: int) -> list[dict]:
    lines = []
    for step in range(20, STEPS + 1, 20):
        skill = 1 - np.exp(-step / 900)
        line = {
            "step": step,
            "train/loss": np.log(permutations) * (1 - 0.8 * skill) + key.normal(0, 0.06),
            "train/spatial/accuracy": float(np.clip(0.75 * skill + key.normal(0, 0.03), 0.01, 1)),
            "train/learning_rate": 0.5 * (1 + np.cos(np.pi * step / STEPS)) * 0.01,
            "time/examples_per_second": 610 + key.normal(0, 12),
            "time/data_wait_share": 0.01,
        }
        if step % 100 == 0:
            line |= {
                "selection/spatial/reward": None if step < 300 else key.normal(0, 0.01 + 0.02 * (1 - skill)),
                "selection/spatial/baseline": 0.01 * (1 - skill),
                "selection/spatial/error": 1 - 0.7 * skill,
                "selection/spatial/entropy": np.log(groups) * (1 - 0.2 * skill),
            }
        if step % 500 == 0:
            line |= {"val/spatial/accuracy": 0.7 * skill, "val/spatial/worst_group_accuracy": 0.5 * skill}
        lines.append(line)
    return lines


def selection_lines(key: np.random.Generator, permutations: int, groups: int) -> list[dict]:
    ease = key.normal(0, 0.6, permutations)
    preference = np.zeros(groups)
    lines = []
    for step in range(0, STEPS + 1, 100):
        logits = ease - 4 + 5.5 * (1 - np.exp(-step / 900)) + key.normal(0, 0.12, permutations)
        accuracy = 1 / (1 + np.exp(-logits))
        group = np.empty(permutations, int)
        group[np.argsort(accuracy)] = np.arange(permutations) * groups // permutations
        preference += key.normal(0, 0.15, groups) + np.linspace(0.06, -0.06, groups)
        share = np.exp(preference) / np.exp(preference).sum()
        probability = (share / np.bincount(group, minlength=groups))[group]
        lines.append(
            {
                "step": step,
                "task": "spatial",
                "accuracy": accuracy.tolist(),
                "probability": probability.tolist(),
                "group": group.tolist(),
            }
        )
    return lines


def probe_results(key: np.random.Generator) -> dict:
    def encoder(level: float) -> dict:
        category = {name: level + float(key.normal(0, 0.05)) for name in CATEGORIES}
        game = {name: level + float(key.normal(0, 0.05)) for name in GAMES}
        return {"mean_f1": level, "by_category": category, "by_game": game}

    encoders = {"trained": encoder(0.5236), "random": encoder(0.4127), "majority": encoder(0.1813)}
    return {"encoders": encoders, "protocol": {"frames": 5000, "probe": "logistic regression"}}


def results(key: np.random.Generator, accuracy: list[float]) -> dict:
    return {
        "command": COMMAND,
        "protocol": {"validation": {"images": 512, "permutations": "all"}},
        "versions": {"jax": "0.10.2", "flax": "0.12.8", "python": "3.11.9"},
        "device": "1 x cpu",
        "seed": 0,
        "wall_seconds": 312.4,
        "final": {
            "val/accuracy": 0.6127,
            "val/spatial/accuracy": 0.6127,
            "val/spatial/worst_group_accuracy": 0.4419,
            "val/spatial/chance": 1 / P,
            "time/policy_overhead": 0.031,
        },
        "permutations": {
            "spatial": {
                "method": "code",
                "num": len(accuracy),
                "min_distance": 8,
                "mean_distance": 8.13,
            }
        },
        "validation": {"spatial": {"class_accuracy": accuracy}},
        "probe": probe_results(key),
        "bad_images": {"unreadable": 2, "undersized": 1, "names": ["a<b>.png", "b.png", "c.png"]},
    }


def make_workdir(path: Path, *, permutations: int = P, groups: int = K, puzzles: int = 6) -> Path:
    """A finished run's work directory, as `experiments.pretrain` leaves it, with invented data."""
    key = np.random.default_rng(0)
    (path / "figures").mkdir(parents=True)
    selection = selection_lines(key, permutations, groups)
    (path / "config.json").write_text(json.dumps(CONFIG))
    for name, lines in (
        ("metrics.jsonl", metric_lines(key, permutations, groups)),
        ("selection.jsonl", selection),
    ):
        (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "results.json").write_text(json.dumps(results(key, selection[-1]["accuracy"])))
    orders = np.stack([key.permutation(9) for _ in range(permutations)])
    images = np.stack([draw_game(key) for _ in range(puzzles)])
    labels = key.integers(0, permutations, puzzles)
    tiles = np.stack([cut(key, image, orders[i]) for image, i in zip(images, labels, strict=True)])
    tiles_png = figures.png(figures.tiles(images, tiles, labels, orders, grid=(3, 3)))
    (path / "figures" / "spatial.png").write_bytes(tiles_png)
    kernel = key.normal(size=(7, 7, 3, 32))
    (path / "figures" / "filters.png").write_bytes(figures.png(figures.filters(kernel)))
    return path


class Page(HTMLParser):
    """What a browser would find: text, ids, images, and everything that names a resource."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.tags, self.images, self.resources, self.words = [], [], [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "img":
            self.images.append(attributes)
        self.resources += [attributes[name] for name in ("src", "href") if name in attributes]

    def handle_data(self, data):
        self.words.append(data)


SECTIONS = [
    "summary",
    "curves",
    "puzzles",
    "policy",
    "classes",
    "filters",
    "probe",
    "data",
    "config",
    "repeat",
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    return make_workdir(tmp_path_factory.mktemp("runs") / "jigsaw_rl")


@pytest.fixture(scope="module")
def report(workdir) -> Path:
    return page.build(workdir)


@pytest.fixture
def unfinished(tmp_path, workdir) -> Path:
    """The same run, killed before it could write its results or draw its pictures."""
    path = tmp_path / "unfinished"
    path.mkdir()
    for name in ("config.json", "metrics.jsonl", "selection.jsonl"):
        shutil.copy(workdir / name, path)
    return path


def write_results(path: Path, **changes) -> None:
    accuracy = [0.5] * P
    (path / "results.json").write_text(json.dumps(results(np.random.default_rng(0), accuracy) | changes))


def text_of(path: Path) -> str:
    return Page(path.read_text()).text.replace("\N{NO-BREAK SPACE}", " ")


def test_page_has_every_section_and_loads_nothing(workdir, report):
    assert report == workdir / "report.html"
    source = report.read_text()
    parsed = Page(source)
    assert parsed.ids == SECTIONS
    assert "script" not in parsed.tags
    assert all(resource.startswith(("data:", "#")) for resource in parsed.resources)
    links = [resource[1:] for resource in parsed.resources if resource.startswith("#")]
    assert links == SECTIONS[1:]
    assert not re.search(r"url\(|@import|https?://", source)
    assert len(source) < 3_000_000
    assert not list(workdir.rglob("*.partial")) + list(workdir.rglob("*.tmp"))


def test_images_are_embedded_whole_at_half_their_pixels(workdir, report):
    images = Page(report.read_text()).images
    files = {path.read_bytes() for path in (workdir / "figures").iterdir()}
    assert len(images) == len(files) == 13
    for image in images:
        kind, data = re.fullmatch("data:image/(png|webp);base64,(.*)", image["src"]).groups()
        if kind == "webp":  # the photographs, which are heavy as PNG
            data = (workdir / "figures" / "spatial.png").read_bytes()
        else:
            data = base64.b64decode(data)
            assert data in files
        width, height = struct.unpack(">II", data[16:24])
        assert (int(image["width"]), int(image["height"])) == (round(width / 2), round(height / 2))
        assert image["alt"]


def test_numbers_appear_as_formatted(report):
    text = text_of(report)
    assert "Pretext accuracy 61.3 % chance 4.2 %" in text
    assert "Worst group 44.2 %" in text
    assert "Linear probe, F1 0.524 random 0.413 · majority 0.181" in text
    assert "Policy overhead 3.1 %" in text
    assert "Wall time 5 min 12 s" in text
    assert "mean 0.524 0.413 0.181 ▲ +0.111" in text
    assert "better from the trained encoder" in text
    assert "24 permutations (method code); any two differ in at least 8 places, 8.13" in text
    assert "spatial.selection.period 100" in text
    assert "unreadable 2 undersized 1" in text


def test_text_from_files_is_escaped(report):
    source = report.read_text()
    assert "<script" not in source
    assert "&lt;script&gt;alert(1)" in source
    assert "<b>" not in source
    assert "&lt;b&gt;breakout&lt;/b&gt;" in source
    assert COMMAND in Page(source).text


def test_an_encoder_that_did_not_help_is_called_so(unfinished):
    encoders = {"trained": {"mean_f1": 0.4}, "random": {"mean_f1": 0.4004}}
    write_results(unfinished, probe={"encoders": encoders})
    text = text_of(page.build(unfinished))
    assert "pre-training did not help" in text
    assert "the game no better from the trained encoder than" in text


def test_page_of_an_unfinished_run(unfinished):
    text = text_of(page.build(unfinished))
    assert "This run has not finished" in text
    assert "up to step 3,000" in text
    # 0.7 * (1 - exp(-3000 / 900)), the newest validation
    assert "Pretext accuracy 67.5 %" in text
    assert "selection images at step 3,000" in text
    assert "The run has not drawn figures/spatial.png" in text
    assert "The features were not probed" in text
    assert "Wall time" not in text


def test_page_of_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "train/lo')  # being written right now
    text = text_of(page.build(tmp_path))
    assert "No metrics have been logged yet." in text
    assert "the first evaluation is still to come" in text


def test_page_of_a_run_with_a_uniform_player_and_no_labels(unfinished):
    (unfinished / "selection.jsonl").write_text("")
    (unfinished / "config.json").write_text(
        json.dumps({"spatial": {"puzzle": {}, "selection": {"name": "uniform"}}})
    )
    write_results(unfinished, probe={}, bad_images={"unreadable": 0, "names": []})
    text = text_of(page.build(unfinished))
    assert "drawn uniformly" in text
    assert "No evaluation of a policy is recorded" in text
    assert "The features were not probed" in text
    assert "No image was skipped" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", '{"final": ', "results.json' is damaged: it is not JSON"),
        ("results.json", "[1, 2]", "results.json' is damaged: it should hold a JSON object"),
        ("metrics.jsonl", '{"step": 1\n{"step": 2}\n', "metrics.jsonl, line 1 is no JSON"),
        ("metrics.jsonl", '{"train/loss": 1.5}\n', "Line 1 of '"),
        ("selection.jsonl", '{"step": 1, "accuracy": [0.5]}\n', "one entry a class"),
        ("config.json", None, "it has no config.json"),
    ],
)
def test_damage_is_named(unfinished, name, content, message):
    path = unfinished / name
    path.unlink(missing_ok=True) if content is None else path.write_text(content)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        page.build(unfinished)
    assert "\n" not in str(error.value)
    assert not (unfinished / "report.html").exists()


def test_missing_workdir_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no work directory '.*nowhere'"):
        page.build(tmp_path / "nowhere")


def test_building_again_gives_the_same_page(workdir, report):
    before = report.read_bytes()
    assert page.build(workdir).read_bytes() == before


def test_a_step_logged_again_after_a_resume_counts_once(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n{"step": 2, "a": 3.0}\n{"step": 3, "a": null}\n'
    )
    assert page.read(tmp_path).series("a") == ([1, 2], [1.0, 3.0])


def test_group_probability_sums_over_members(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    lines = [
        {
            "step": 0,
            "task": "spatial",
            "accuracy": [0] * 4,
            "probability": [0.1, 0.2, 0.3, 0.4],
            "group": [0, 1, 2, 0],
        },
        {
            "step": 5,
            "task": "spatial",
            "accuracy": [0] * 4,
            "probability": [0.1, 0.2, 0.3, 0.4],
            "group": [1, 1, 0, 0],
        },
    ]
    (tmp_path / "selection.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.testing.assert_allclose(
        page.read(tmp_path).choices("spatial").group_probability, [[0.5, 0.2, 0.3], [0.7, 0.3, 0.0]]
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (312.4, "5 min 12 s"), (7380, "2 h 3 min")],
)
def test_duration(seconds, text):
    assert page.duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


def test_difference_rounds_before_it_takes_sides():
    assert page.difference(0.50049, 0.5) == "±0.000"
    assert page.difference(0.5, 0.75).startswith("▼")
    assert page.difference(None, 0.5) == "–"


def test_curves_hold_the_given_data():
    values = np.sin(np.arange(100))
    figure = figures.curves(
        {"x": (range(100), values), "y": ([0, 50], [0.25, 0.5])},
        ylabel="$ per <mile>",
        reference=("chance", 0.1),
    )
    raw, smooth, short, chance = figure.axes[0].lines
    np.testing.assert_array_equal(raw.get_ydata(), values)
    np.testing.assert_allclose(smooth.get_ydata()[10], values[8:12].mean())
    np.testing.assert_allclose(smooth.get_ydata()[0], values[:2].mean())
    np.testing.assert_array_equal(short.get_xydata(), [[0, 0.25], [50, 0.5]])
    assert set(chance.get_ydata()) == {0.1}
    figures.png(figure)  # the dollar is no formula


def test_heat_maps_hold_the_given_data():
    probability = np.array([[0.1, 0.9], [0.4, 0.6], [0.5, 0.5]])
    (mesh,) = figures.probability_heat_map([0, 10, 30], probability).axes[0].collections
    np.testing.assert_array_equal(mesh.get_array(), probability.T)
    np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], [0, 10, 30, 45])
    accuracy = np.array([[0.1, 0.2, 0.3], [0.9, 0.5, 0.7]])
    (mesh,) = figures.permutation_heat_map([0, 10], accuracy).axes[0].collections
    np.testing.assert_array_equal(mesh.get_array(), accuracy[:, [1, 2, 0]].T)


def test_permutation_accuracy_is_sorted_and_keeps_its_groups():
    figure = figures.permutation_accuracy([0.9, 0.1, 0.5], group=[1, 0, 0])
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [0.1, 0.5, 0.9]
    assert bars[0].get_facecolor() == bars[1].get_facecolor() != bars[2].get_facecolor()
    mean, chance = figure.axes[0].lines
    assert mean.get_ydata()[0] == pytest.approx(0.5)
    assert chance.get_ydata()[0] == pytest.approx(1 / 3)


def test_probe_bars_hold_the_given_data():
    scores = {"trained": {"a": 0.5, "b": 0.25}, "random": {"b": 0.125}}
    trained, random = figures.probe_bars(scores, xlabel="F1").axes[0].containers
    assert [bar.get_width() for bar in trained] == [0.5, 0.25]
    assert np.isnan(random[0].get_width())
    assert random[1].get_width() == 0.125


def test_tiles_show_each_tile_in_its_place():
    images = np.zeros((2, 60, 40, 3), np.uint8)
    tiles = np.broadcast_to(np.arange(4.0)[None, :, None, None, None], (2, 4, 16, 16, 3))
    permutations = np.array([[0, 1, 2, 3], [3, 2, 0, 1]], np.int32)
    figure = figures.tiles(images, tiles, [1, 0], permutations, grid=(2, 2))
    original, puzzle = figure.axes[:2]
    np.testing.assert_array_equal(original.images[0].get_array(), images[0])
    shown = np.asarray(puzzle.images[0].get_array())
    assert shown.shape == (33, 33, 3)
    np.testing.assert_allclose(shown[[0, 0, -1, -1], [0, -1, 0, -1], 0], [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_array_equal(shown[16], 1)  # the gap
    assert [text.get_text() for text in puzzle.texts] == ["3", "2", "0", "1"]
    assert [text.get_text() for text in original.texts] == ["0", "1", "2", "3"]
    assert puzzle.get_title() == "class 1: 3 2 0 1"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_filters_show_zero_in_grey_and_the_largest_weight_at_an_end(channels):
    kernel = np.zeros((3, 3, channels, 2), np.float32)
    kernel[0, 0, 0] = (0.01, -5.0)  # scaled filter by filter
    shown = np.asarray(figures.filters(kernel).axes[0].images[0].get_array())
    width = (shown.shape[1] - 10) // 2
    assert shown[0, 0, 0] == 1.0
    assert shown[0, width + 10, 0] == 0.0
    np.testing.assert_array_equal(shown[40, 40], [0.5] * 3)


def test_figures_leave_pyplot_alone():
    code = (
        "import sys, ssl_jax.report.page, ssl_jax.report.console\n"
        "from ssl_jax.report import figures\n"
        "figures.png(figures.curves({'a': ([0, 1], [0, 1])}, ylabel='a'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_console_prints_the_numbers_and_where_the_report_is(workdir, report):
    terminal = Console(width=88, record=True, file=io.StringIO())
    console.print_results(workdir, terminal)
    text = terminal.export_text().replace("\N{NO-BREAK SPACE}", " ")
    assert re.search(r"validation accuracy\W+61\.3 %\W+4\.2 %", text)
    assert re.search(r"mean\W+0\.524\W+0\.413\W+0\.181\W+▲ \+0\.111", text)
    assert f"Report: {report}" in text


def test_console_of_an_unfinished_run(unfinished, capsys):
    console.print_results(unfinished)
    assert "67.5" in capsys.readouterr().out


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MEASURE = """<!doctype html><title>?</title><body>$frames<script>
onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const drawn = [...page.images].filter(image => image.complete && image.naturalWidth > 0);
    const color = frame.contentWindow.getComputedStyle(page.body).backgroundColor;
    return [root.clientWidth, root.scrollWidth, drawn.length, color];
  });
  document.body.replaceChildren();
  document.title = JSON.stringify(found);
};
</script>"""


def in_a_browser(report: Path, tmp_path: Path) -> dict[str, list]:
    """Colour scheme -> width, scroll width, pictures drawn and background, in a wide and a narrow window.

    The page is as it is, its own ban on scripts included, in frames measured from around it.
    """
    frame = '<iframe style="border:0;height:900px;width:{}px" srcdoc="{}"></iframe>'
    source = html.escape(report.read_text())
    frames = "".join(frame.format(width, source) for width in (1280, 420))
    (tmp_path / "measure.html").write_text(MEASURE.replace("$frames", frames))
    found = {}
    for scheme, code in (("light", 1), ("dark", 0)):
        browser = subprocess.run(
            [
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--blink-settings=preferredColorScheme={code}",
                "--dump-dom",
                f"file://{tmp_path / 'measure.html'}",
            ],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        )
        found[scheme] = json.loads(re.search("<title>(.*)</title>", browser.stdout)[1])
    return found


@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser `chromium`")
def test_in_a_browser_the_page_fits_wide_and_narrow_windows(report, tmp_path):
    found = in_a_browser(report, tmp_path)
    for scheme, background in (("light", "rgb(246, 247, 249)"), ("dark", "rgb(20, 24, 29)")):
        assert found[scheme] == [[1280, 1280, 13, background], [420, 420, 13, background]]
