import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.data.atari_frames import ram_labels
from ssl_jax.evaluation import linear_probe, state_probe
from ssl_jax.evaluation.features import Rows, collect
from ssl_jax.runtime.errors import InputError

GAME = "breakout"
PROTOCOL = state_probe.Protocol()


def frames(ram, features, digest=None, game=0) -> Rows:
    """Frames with RAM [N, 128], features {encoder: [N, D]} and, unless given, all different digests."""
    digest = [f"{id(ram)}-{row}" for row in range(len(ram))] if digest is None else digest
    return Rows(features, {"ram": ram, "game": np.full(len(ram), game), "digest": np.array(digest)})


def random_splits(number=300, levels=4, seed=0):
    """Splits whose annotated bytes take random values; the features hold them, or are noise."""
    rng = np.random.default_rng(seed)
    addresses = list(ram_labels(GAME).values())
    splits = {}
    for split in ("train", "validation", "test"):
        ram = np.zeros((number, 128), np.uint8)
        ram[:, addresses] = rng.integers(0, levels, (number, len(addresses)))
        one_hot = np.concatenate([ram[:, addresses] == value for value in range(levels)], 1)
        noise = rng.standard_normal((number, 8))
        splits[split] = frames(ram, {"knows": one_hot.astype(np.float32), "noise": noise})
    return splits


def test_features_that_hold_the_state_score_1_and_noise_scores_like_chance():
    scores = state_probe.probe_game(GAME, random_splits(), PROTOCOL)
    assert scores.keys() == {"knows", "noise", "majority"}
    for values in scores.values():
        assert values.keys() == ram_labels(GAME).keys()
    assert min(scores["knows"].values()) > 0.99
    # Four values, equally likely: guessing scores 1 / 4, always answering one (2 / 5) / 4.
    assert 0.1 < np.mean(list(scores["noise"].values())) < 0.35
    assert np.mean(list(scores["majority"].values())) == pytest.approx(0.1, abs=0.03)


def one_variable(name, train, test, features=None):
    """Splits in which one variable moves; the features are constant unless given."""
    splits = {}
    for split, values in {"train": train, "validation": train, "test": test}.items():
        ram = np.full((len(values), 128), 3, np.uint8)
        ram[:, ram_labels(GAME)[name]] = values
        splits[split] = frames(ram, {"encoder": np.ones((len(values), 2))})
    return splits


def test_majority_by_hand():
    # The answer is always 5. Of the test frames three are 5, one is 9: precision 3 / 4, recall 1, so
    # F1 = 6 / 7 for value 5, 0 for 9; weighted by 3 / 4 and 1 / 4.
    splits = one_variable("ball_x", [5] * 6 + [9] * 4, [5, 5, 9, 5])
    scores = state_probe.probe_game(GAME, splits, PROTOCOL)
    assert scores["majority"] == {"ball_x": pytest.approx(3 / 4 * 6 / 7)}
    assert scores["encoder"] == scores["majority"]  # constant features know nothing else


def test_variables_of_low_entropy_are_dropped():
    assert state_probe.entropy(np.array([1, 1, 2, 2])) == pytest.approx(np.log(2))
    assert state_probe.entropy(np.array([7, 7, 7])) == 0
    assert state_probe.entropy(np.array([0, 0, 0, 1])) == pytest.approx(0.5623, abs=1e-4)
    splits = random_splits(number=80)
    for split in splits.values():
        # A quarter of the frames differ: 0.5623 nats, below the 0.6 of the paper.
        split.fields["ram"][:, ram_labels(GAME)["player_x"]] = np.arange(80) % 4 == 0
    scores = state_probe.probe_game(GAME, splits, PROTOCOL)
    assert scores["knows"].keys() == ram_labels(GAME).keys() - {"player_x"}
    lower = state_probe.Protocol(min_entropy=0.5)
    assert "player_x" in state_probe.probe_game(GAME, splits, lower)["knows"]


def test_test_frames_that_are_in_train_are_dropped():
    splits = one_variable("ball_x", [5] * 6 + [9] * 4, [5, 9, 9, 9])
    # The last two were seen in training. One 5 and one 9 are left: F1 of 5 is 2 / 3, its weight 1 / 2.
    splits["test"].fields["digest"][2:] = splits["train"].fields["digest"][:2]
    scores = state_probe.probe_game(GAME, splits, PROTOCOL)
    assert scores["majority"] == {"ball_x": pytest.approx(1 / 3)}
    splits["test"].fields["digest"][:] = splits["train"].fields["digest"][0]
    assert state_probe.probe_game(GAME, splits, PROTOCOL) == {}


def test_a_game_with_nothing_to_probe_gives_nothing():
    splits = one_variable("ball_x", [5] * 10, [5] * 4)
    assert state_probe.probe_game(GAME, splits, PROTOCOL) == {}
    for split in ("train", "validation", "test"):
        none = np.zeros(len(splits[split].fields["game"]), bool)
        empty = splits | {split: splits[split].where(none)}
        assert state_probe.probe_game(GAME, empty, state_probe.Protocol(min_entropy=-1.0)) == {}


def test_the_weight_decay_is_chosen_on_validation():
    """A decay that leaves nothing of the weights answers the most frequent value."""
    rng = np.random.default_rng(0)
    splits = random_splits(number=60)
    for split in splits.values():
        truth = split.features["knows"] + 0.3 * rng.standard_normal(split.features["knows"].shape)
        split.features["knows"] = np.concatenate([truth, rng.standard_normal((60, 50))], 1)
    mean = lambda decays: np.mean(
        list(
            state_probe.probe_game(GAME, splits, state_probe.Protocol(weight_decays=decays))["knows"].values()
        )
    )
    good, crushing = mean((1e-2,)), mean((1e6,))
    assert good > crushing + 0.02
    assert mean((1e-2, 1e6)) == mean((1e6, 1e-2)) == good


def pictures(number, seed):
    return np.random.default_rng(seed).integers(0, 256, (number, 6, 5, 3), np.uint8)


def test_collect_keeps_the_rows_with_a_mask():
    images, masks = [pictures(4, 0), pictures(4, 1)], [[1, 1, 0, 1], [1, 0, 0, 0]]
    batches = [
        {
            "image": image,
            "ram": np.full((4, 128), number, np.uint8),
            "game": np.array([0, 1, 1, 0]),
            "mask": np.array(mask, bool),
        }
        for number, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]
    batches[1]["image"][0] = batches[0]["image"][0]
    encoders = {
        "mean": lambda image: jnp.asarray(image, jnp.float32).mean((1, 2)),
        "pixel": lambda image: image[:, 0, 0].astype(np.float32),
    }
    kept = collect(state_probe.with_digest(iter(batches)), encoders)
    good = np.stack([images[0][0], images[0][1], images[0][3], images[1][0]])
    np.testing.assert_allclose(kept.features["mean"], good.mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(kept.features["pixel"], good[:, 0, 0])
    np.testing.assert_array_equal(kept.fields["ram"][:, 0], [0, 0, 0, 1])
    np.testing.assert_array_equal(kept.fields["game"], [0, 1, 0, 0])
    # The same picture has the same digest, and no other has it.
    digest = kept.fields["digest"]
    assert digest[0] == digest[3]
    assert len(set(digest)) == 3


def test_evaluate_keeps_games_apart():
    """Two games in one split: what one byte means in the one is not mixed with the other."""
    games = ("breakout", "pong")
    rng = np.random.default_rng(3)

    def batches():
        for _ in range(6):
            image, game = np.zeros((40, 4, 4, 3), np.uint8), rng.integers(0, 2, 40)
            ram = np.zeros((40, 128), np.uint8)
            value = rng.integers(0, 2, 40)
            for number, name in enumerate(games):
                rows = game == number
                ram[np.ix_(rows, list(ram_labels(name).values()))] = value[rows][:, None]
            image[:, 0, 0, 0] = np.where(game == 0, value, 1 - value) * 255
            image[:, 1:] = rng.integers(0, 256, (40, 3, 4, 3))  # all frames differ
            yield {"image": image, "ram": ram, "game": game, "mask": np.ones(40, bool)}

    splits = {split: list(batches()) for split in ("train", "validation", "test")}
    encoder = lambda image: image[:, 0, 0, :1].astype(np.float32)
    scores = state_probe.evaluate(state_probe.read(splits, {"pixel": encoder}), games, PROTOCOL)
    assert scores.keys() == {"pixel", "majority"}
    assert scores["pixel"]["by_variable"].keys() == set(games)
    for game in games:
        assert min(scores["pixel"]["by_variable"][game].values()) == 1
        assert max(scores["majority"]["by_variable"][game].values()) < 0.5


def test_a_split_of_padding_alone_gives_no_scores():
    batch = {"image": pictures(2, 0), "ram": np.zeros((2, 128), np.uint8), "game": np.zeros(2, int)}
    batch["mask"] = np.zeros(2, bool)
    splits = {split: [batch] for split in ("train", "validation", "test")}
    encoders = {"pixel": lambda image: image[:, 0, 0].astype(np.float32)}
    assert state_probe.evaluate(state_probe.read(splits, encoders), ("breakout",), PROTOCOL) == {}


def test_readouts_are_told_apart_again():
    maps = np.random.default_rng(0).random((6, 5, 4, 3), np.float32)
    kept = state_probe.readout(maps, (2, 1))
    assert kept.shape == (6, 2 * 3 + 2 * 3)
    frames = {"test": Rows({"random": np.asarray(kept)}, {"index": np.arange(6)})}
    parts = state_probe.readouts(frames, (2, 1))
    positions, cells = (parts[name]["test"].features["random"] for name in ("positions", "cells"))
    np.testing.assert_array_equal(positions, linear_probe.positions(maps))
    np.testing.assert_array_equal(cells, linear_probe.pool(maps, (2, 1)))
    np.testing.assert_array_equal(parts["cells"]["test"].fields["index"], np.arange(6))


def test_summary_by_hand():
    scores = {
        "pong": {"player_x": 0.2, "player_y": 0.6, "ball_x": 0.8, "enemy_score": 0.3},
        "breakout": {"player_x": 1.0, "ball_x": 0.4},
    }
    summary = state_probe.summarize(scores)
    # pong: agent (0.2 + 0.6) / 2, small object 0.8, score 0.3; breakout: agent 1.0, small object 0.4.
    assert summary["by_game"] == pytest.approx({"pong": (0.4 + 0.8 + 0.3) / 3, "breakout": 0.7})
    assert summary["by_category"] == pytest.approx(
        {
            "agent_localization": (0.4 + 1.0) / 2,
            "small_object_localization": (0.8 + 0.4) / 2,
            "score_clock_lives_display": 0.3,
        }
    )
    assert summary["mean_f1"] == pytest.approx((0.5 + 0.7) / 2)
    assert summary["by_variable"] == scores


def test_ram_labels_that_can_be_nan_are_refused():
    fields = {"ram": np.zeros((4, 128), np.float32), "digest": np.array(list("abcd"))}
    frames = Rows({"trained": np.zeros((4, 2), np.float32)}, fields)
    with pytest.raises(InputError, match="the RAM labels of pong in the split train are float32 and must be"):
        state_probe.probe_game("pong", dict.fromkeys(("train", "validation", "test"), frames), PROTOCOL)


@pytest.mark.parametrize("decays", [(), (0.0, 0.1)])
def test_weight_decays_that_cannot_be_are_named(decays):
    with pytest.raises(InputError, match="of the state probe must name numbers above 0"):
        state_probe.Protocol(weight_decays=decays)
