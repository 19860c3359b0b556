import io
import itertools
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ssl_jax.data import atari_frames
from ssl_jax.runtime.errors import InputError

TINY = atari_frames.AtariFrames.builder_configs["tiny"]


@pytest.fixture(scope="module")
def tiny(atari_tiny_dir):
    """Every split of `tiny` as a list of examples, pictures still encoded."""
    splits = atari_frames.build("tiny", atari_tiny_dir).as_data_source(
        decoders={"image": tfds.decode.SkipDecoding()}
    )
    return {split: list(examples) for split, examples in splits.items()}


@pytest.fixture(scope="module")
def breakout():
    """A stream of Breakout that is long enough for several episodes."""
    return [frame for _, frame in atari_frames.play("breakout", [4], [0], 500, seed=1)]


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def files(data_dir) -> dict[str, bytes]:
    """The records of a prepared `tiny`, by file name."""
    directory = pathlib.Path(data_dir) / "atari_frames" / "tiny" / "1.0.0"
    return {path.name: path.read_bytes() for path in directory.glob("*.array_record*")}


def test_sizes_and_fields(tiny):
    assert {split: len(examples) for split, examples in tiny.items()} == {
        "train": 2 * 4 * 40,
        "selection": 2 * 1 * 40,
        "validation": 2 * 2 * 40,
        "test": 2 * 2 * 40,
    }
    assert sum(map(len, tiny.values())) == TINY.num_frames == 720
    for examples in tiny.values():
        assert pixels(examples[0]["image"]).shape == atari_frames.FRAME_SHAPE
        assert (examples[0]["ram"].shape, examples[0]["ram"].dtype) == ((128,), np.uint8)
        games = [example["game"] for example in examples]
        assert games == sorted(games)
        assert np.bincount(games).tolist() == [len(examples) // 2] * 2


def test_no_episode_is_in_two_splits(tiny):
    episodes = {split: {e["episode"] for e in examples} for split, examples in tiny.items()}
    assert sum(map(len, episodes.values())) == len(set.union(*episodes.values())) >= 18


def test_rows_are_consecutive_steps_of_streams(tiny):
    for examples in tiny.values():
        for start in range(0, len(examples), TINY.steps):
            stream = examples[start : start + TINY.steps]
            for before, after in itertools.pairwise(stream):
                if not before["terminal"]:
                    assert after["episode"] == before["episode"]
                    assert after["step"] == before["step"] + 1


def test_splits_see_the_same_range_of_the_games(tiny):
    assert atari_frames.warmups(2, 400) == [100, 300]
    assert atari_frames.warmups(4, 400) == [50, 150, 250, 350]
    # No episode ends within 100 steps here, so the first step of a stream is its warm-up.
    for examples in tiny.values():
        firsts = [example["step"] for example in examples[:: TINY.steps]]
        assert np.mean(firsts) == pytest.approx(TINY.max_warmup / 2, abs=1)


def test_terminal_is_the_last_frame_of_an_episode(breakout):
    assert [frame.step for frame in breakout[:3]] == [0, 1, 2]
    ends = [i for i, frame in enumerate(breakout) if frame.terminal]
    assert len(ends) >= 2
    lives = balls_left(breakout)
    for before, after in itertools.pairwise(breakout):
        assert after.step == (0 if before.terminal else before.step + 1)
        assert after.episode == before.episode + before.terminal
    for i in ends:  # The last ball is lost in the last frame, and the next frame has all five.
        assert (lives[i], lives[i + 1]) == (0, 5)
        assert lives[i - 1] in (0, 1)
    assert breakout[0].episode == 4 * atari_frames.EPISODES_PER_STREAM


def balls_left(frames) -> list[int]:
    """Breakout keeps the number of balls in byte 57."""
    return [int(frame.ram[57]) for frame in frames]


def test_streams_equal_a_plain_loop_over_one_emulator(breakout):
    """The asynchronous pool mixes up nothing: step for step against envpool's simplest use."""
    import envpool

    rng = np.random.default_rng([1, *b"breakout", 4])
    env = envpool.make_gymnasium(
        "Breakout-v5",
        num_envs=1,
        env_seed=[int(rng.integers(2**31))],
        img_height=210,
        img_width=160,
        gray_scale=False,
        stack_num=1,
        use_inter_area_resize=False,
        full_action_space=True,
        repeat_action_probability=0.25,
        use_fire_reset=False,
    )
    actions = atari_frames.random_agent(rng, 500)
    observation, info = env.reset()
    terminal = False
    for t, frame in enumerate(breakout):
        np.testing.assert_array_equal(pixels(frame.image), observation[0].transpose(1, 2, 0))
        np.testing.assert_array_equal(frame.ram, info["ram"][0])
        assert frame.terminal == terminal
        observation, _, terminated, truncated, info = env.step(actions[t : t + 1])
        terminal = bool(terminated[0] | truncated[0])


def test_a_stream_does_not_depend_on_its_neighbours():
    together = [[], [], []]
    for i, frame in atari_frames.play("pong", [3, 7, 11], [0, 6, 20], 12, seed=0):
        together[i].append(frame)
    alone = [frame for _, frame in atari_frames.play("pong", [7], [6], 12, seed=0)]
    for some, other in zip(together[1], alone, strict=True):
        assert some.image == other.image
        np.testing.assert_array_equal(some.ram, other.ram)
    assert alone[0].step == 6
    other_seed = [frame for _, frame in atari_frames.play("pong", [7], [6], 12, seed=1)]
    assert any(some.image != other.image for some, other in zip(alone, other_seed, strict=True))


def test_picture_and_ram_are_of_the_same_moment():
    """Pong's ball is where its RAM says, and where the RAM of the step before says it is not."""
    frames = [frame for _, frame in atari_frames.play("pong", [0], [60], 150, seed=0)]
    seen = []
    for before, frame in itertools.pairwise(frames):
        field = pixels(frame.image)[34:194, 16:144]  # without score and borders
        columns = np.flatnonzero((field == (236, 236, 236)).all(-1).any(0))
        if columns.size:
            seen.append((columns.mean() + 16, int(frame.ram[49]), int(before.ram[49])))
    assert len(seen) > 50
    drawn, now, before = np.array(seen).T
    assert np.std(drawn - now) < 2
    assert np.std(drawn - before) > 3


def test_the_agent_keeps_its_action_three_times_out_of_four():
    actions = atari_frames.random_agent(np.random.default_rng(0), 40_000)
    assert actions.dtype == np.int32
    assert set(actions) == set(range(18))
    # Kept, or drawn anew and the same by chance.
    assert np.mean(actions[1:] == actions[:-1]) == pytest.approx(0.75 + 0.25 / 18, abs=0.01)


def test_ram_labels():
    assert atari_frames.ram_labels("pong") == {
        "player_y": 51,
        "player_x": 46,
        "enemy_y": 50,
        "enemy_x": 45,
        "ball_x": 49,
        "ball_y": 54,
        "enemy_score": 13,
        "player_score": 14,
    }
    for config in atari_frames.AtariFrames.builder_configs.values():
        for game in config.games:
            assert all(0 <= address < 128 for address in atari_frames.ram_labels(game).values())
    with pytest.raises(InputError, match=r"'pongg'; did you mean pong"):
        atari_frames.ram_labels("pongg")


@pytest.mark.parametrize(
    ("variable", "kind"),
    [
        ("player_x", "agent_localization"),
        ("player_column", "agent_localization"),
        ("player_left_paddle_y", "agent_localization"),
        ("ball_y", "small_object_localization"),
        ("player_missile_x1", "small_object_localization"),
        ("missiles_y", "small_object_localization"),
        ("diver_or_enemy_missile_x_0", "small_object_localization"),
        ("enemy_x3", "other_localization"),
        ("enemy_car_x_9", "other_localization"),
        ("green_enemy_column", "other_localization"),
        ("sprite0_y", "other_localization"),
        ("player_score", "score_clock_lives_display"),
        ("score_1_2", "score_clock_lives_display"),
        ("num_lives_direction", "score_clock_lives_display"),
        ("clock_ms", "score_clock_lives_display"),
        ("oxygen_meter_value", "score_clock_lives_display"),
        ("frame_number_display", "score_clock_lives_display"),
        ("player_missile1_direction", "miscellaneous"),
        ("divers_collected_count", "miscellaneous"),
        ("room_number", "miscellaneous"),
        ("block_bit_map_29", "miscellaneous"),
        ("tile_color_0", "miscellaneous"),
    ],
)
def test_categories(variable, kind):
    assert atari_frames.category(variable) == kind


def test_the_configs_are_what_they_promise():
    import envpool

    configs = atari_frames.AtariFrames.builder_configs
    assert configs["default"].num_frames == 32_000
    assert len(configs["default"].games) == 8
    assert configs["atariari"].num_frames == 50_000 * len(configs["atariari"].games)
    known = {task.removesuffix("-v5").lower() for task in envpool.list_all_envs()}
    assert set(configs["atariari"].games) <= known
    assert set(configs["default"].games) < set(configs["atariari"].games)


# Building

PROGRAM = """
import sys
from ssl_jax.data import atari_frames
atari_frames.build("tiny", sys.argv[1])
assert "tensorflow" not in sys.modules
"""


def start_build(data_dir) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(data_dir)], stderr=subprocess.PIPE, text=True)


def test_killed_and_concurrent_builds_end_in_the_same_bytes(tmp_path, atari_tiny_dir):
    config = tmp_path / "atari_frames" / "tiny"
    killed = start_build(tmp_path)
    while not list(config.glob("incomplete.*/*.array_record*")):
        assert killed.poll() is None
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (config / "1.0.0").exists()
    assert list(config.glob("incomplete.*"))

    both = [start_build(tmp_path) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sum("Rendering" in error for error in errors) == 1  # The other waited.
    assert [path.name for path in config.iterdir()] == ["1.0.0"]
    assert len(files(tmp_path)) == 8
    assert files(tmp_path) == files(atari_tiny_dir)


def refusal(data_dir) -> str:
    """Returns the sentence with which `build` refuses."""
    with pytest.raises(InputError) as error:
        atari_frames.build("tiny", str(data_dir))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    sentence = refusal(tmp_path)
    assert "needs about 2,949,120 bytes, only 1,000,000 are free" in sentence
    assert list((tmp_path / "atari_frames" / "tiny").iterdir()) == []


def test_no_room_after_all(tmp_path):
    """A write fails in the middle of the build, here at a limit to the size of files."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        sentence = refusal(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"cannot be written to {tmp_path}" in sentence
    assert list((tmp_path / "atari_frames" / "tiny").iterdir()) == []


def test_directories_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    assert "name a writable directory" in refusal(tmp_path / "file")
    partial = tmp_path / "atari_frames" / "tiny" / "1.0.0"
    partial.mkdir(parents=True)
    (partial / "features.json").write_text(json.dumps({}))
    assert f"{partial} is there but incomplete; please remove it" in refusal(tmp_path)
    assert partial.exists()


def test_unknown_config(tmp_path):
    with pytest.raises(InputError, match="'defalt'; did you mean default"):
        atari_frames.build("defalt", str(tmp_path))


@pytest.mark.parametrize("game", ["ALE/Pong-v5", "PongNoFrameskip-v4", "Pong-ram-v4", "Pong"])
def test_game_of_another_spelling_names_the_game(game):
    for ask in (atari_frames.ram_labels, lambda game: next(atari_frames.play(game, [0], [0], 1, 0))):
        with pytest.raises(InputError, match=f"{game!r}; did you mean pong or"):
            ask(game)
