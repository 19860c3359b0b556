import dataclasses
import json

import numpy as np
import pytest

from ssl_jax.atari import protocol
from ssl_jax.atari.protocol import Protocol
from ssl_jax.runtime import config
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.fast


def test_games_are_envpools_tasks():
    import envpool

    known = protocol.games()
    assert {"Pong", "Breakout", "MsPacman", "SpaceInvaders", "Qbert"} <= set(known)
    assert {f"{game}-v5" for game in known} <= set(envpool.list_all_envs())


def test_unknown_game_names_the_closest_and_lists_them():
    with pytest.raises(InputError, match="'Pongg', did you mean 'Pong'") as caught:
        Protocol(game="Pongg")
    assert "Breakout" in str(caught.value)
    with pytest.raises(InputError, match="did you mean 'SpaceInvaders'"):
        Protocol(game="spaceinvaders")


@pytest.mark.parametrize("game", ["pong", "PONG", "PongNoFrameskip", "pong-ram"])
def test_game_of_another_spelling_names_the_game(game):
    with pytest.raises(InputError, match=f"unknown Atari game '{game}', did you mean 'Pong'"):
        Protocol(game=game)


@pytest.mark.parametrize(
    ("environment", "game"),
    [
        ("ALE/Pong-v5", "Pong"),
        ("Pong-v5", "Pong"),
        ("PongNoFrameskip-v4", "Pong"),
        ("PongDeterministic-v0", "Pong"),
        ("Pong-ram-v4", "Pong"),
        ("ALE/SpaceInvaders-v5", "SpaceInvaders"),
        ("Pitfall2NoFrameskip-v4", "Pitfall2"),
    ],
)
def test_environment_id_is_refused_with_the_name_of_its_game(environment, game):
    """It stands for a frame skip and sticky actions, which would silently be others."""
    with pytest.raises(InputError) as caught:
        Protocol(game=environment)
    assert f"game='{environment}' is the id of an environment" in str(caught.value)
    assert f"the name of the game, '{game}', and set frame_skip" in str(caught.value)
    assert "sticky_actions" in str(caught.value)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("frame_skip", 0),
        ("noop_max", 0),
        ("stack", 0),
        ("evaluation_episodes", 0),
        ("frames_trained", -1),
        ("sticky_actions", 1.5),
        ("evaluation_epsilon", -0.1),
        ("max_episode_frames", 3),
        ("frame_size", (84, 0)),
    ],
)
def test_a_value_that_cannot_be_is_named(attribute, value):
    with pytest.raises(InputError, match=attribute):
        Protocol(game="Pong", **{attribute: value})


def test_the_cap_is_in_emulator_frames():
    assert Protocol(game="Pong").max_episode_steps == 27_000
    assert Protocol(game="Pong", frame_skip=3, max_episode_frames=100).max_episode_steps == 33


def test_differences_name_what_differs():
    ours = Protocol(game="Pong", sticky_actions=0.25, frames_trained=1000)
    theirs = dataclasses.replace(ours, sticky_actions=0.0, noop_max=1)
    assert protocol.differences(ours, ours) == {}
    assert protocol.differences(ours, theirs) == {"sticky_actions": (0.25, 0.0), "noop_max": (30, 1)}


def test_survives_a_results_file_and_fits_a_config_section():
    ours = Protocol(game="Breakout", life_loss=True, frame_size=(42, 40))
    section = json.loads(json.dumps(dataclasses.asdict(ours)))
    assert Protocol(**config.unpack(section, Protocol, path="protocol")) == ours


def test_rewards_to_learn_from():
    reward = np.array([-200.0, -1.0, 0.0, 0.5, 7.0], np.float32)
    clipped = protocol.learning_reward(Protocol(game="Pong"), reward)
    np.testing.assert_array_equal(clipped, np.array([-1, -1, 0, 0.5, 1], np.float32))
    assert clipped.dtype == np.float32
    raw = protocol.learning_reward(Protocol(game="Pong", reward_clip=False), reward)
    np.testing.assert_array_equal(raw, reward)
