"""Dueling double DQN on Atari with a self-supervised task beside it (Agarwal, Sinha and Ayush).

python -m ssl_jax.main --config=configs/dueling_dqn.py                              # Pong, no task
python -m ssl_jax.main --config=configs/dueling_dqn.py:game=Pong,aux=sequence       # order of the frames
python -m ssl_jax.main --config=configs/dueling_dqn.py:paper,game=Breakout,aux=rotation
python -m ssl_jax.main --config=configs/dueling_dqn.py:nature,game=Seaquest

Default: frames of 52 x 52 pixels instead of 84 x 84, so that two CPU cores make four times as many updates.
Pong, seed 0, 400,000 agent steps, JAX 0.10.2, on one core beside other work: without a task 18.2 over
100 games, 61 minutes; with `sequence` 16.9, 75 minutes; with `rotation` 17.2, 73 minutes; a random agent has
-20.3 (results/dueling_dqn). `paper` and `nature` were never run whole.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_jax.runtime.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    preset, options = parse_arg(
        arg,
        presets=("smoke", "paper", "nature"),
        game="Pong",
        aux=("none", "rotation", "sequence", "arrow_of_time", "jigsaw"),
    )
    config = ConfigDict(default())
    config.update({"default": {}, "smoke": smoke(), "paper": paper(), "nature": nature()}[preset])
    config.protocol.game = options.game
    config.auxiliary.name = options.aux
    return config


def default():
    return {
        "experiment": "dueling_dqn",
        "seed": 0,
        "num_seeds": 1,
        "precision": "float32",
        "profile": False,  # true: a trace of a few steps, in WORKDIR/profile
        "watchdog_seconds": 600.0,  # without progress, after which all stacks are printed; 0: never
        "protocol": {
            "game": "Pong",
            "frame_skip": 4,
            "sticky_actions": 0.0,
            "life_loss": True,
            "noop_max": 30,
            "max_episode_frames": 108_000,
            "full_action_space": False,
            "fire_on_reset": False,
            "frame_size": (52, 52),
            "stack": 4,
            "reward_clip": True,
            "evaluation_epsilon": 0.01,
            "evaluation_episodes": 100,
        },
        "environments": {"num": 8, "threads": 0},
        "network": {"dueling": True, "hidden": 512, "motion_gain": 8.0, "start_from": placeholder(str)},
        "replay": {
            "capacity": 100_000,
            "n_step": 3,
            "priority_exponent": 0.5,
            "importance_exponent": 0.4,
            "importance_steps": 600_000,
            "place": "device",
        },
        "exploration": {"random_steps": 5_000, "decay_steps": 100_000, "final_epsilon": 0.01},
        "auxiliary": {
            "name": "none",
            "schedule": "alternate",
            "weight": 1.0,
            "grid": (2, 2),
            "max_permutations": 100,
        },
        "train": {
            "agent_steps": 400_000,
            "steps_per_update": 4,
            "batch_size": 32,
            "gamma": 0.99,
            "double_q": True,
            "target_period": 500,
            "optimizer": "adam",
            "learning_rate": 2e-4,
            "decay_share": 0.25,
            "optimizer_epsilon": 1e-8,
            "max_gradient_norm": 10.0,
            "log_every": 2_000,
            "evaluate_every": 50_000,
            "checkpoint_every": 25_000,
            "keep_checkpoints": 1,
        },
        "evaluation": {"num_envs": 10, "episodes": 10, "video_frames": 600},
    }


def smoke():
    return {
        "protocol": {"max_episode_frames": 400, "evaluation_episodes": 4},
        "network": {"hidden": 16},
        "replay": {"capacity": 400},
        "exploration": {"random_steps": 64, "decay_steps": 64},
        "train": {
            "agent_steps": 240,
            "batch_size": 8,
            "target_period": 10,
            "log_every": 40,
            "evaluate_every": 120,
            "checkpoint_every": 80,
        },
        "evaluation": {"num_envs": 2, "episodes": 2, "video_frames": 20},
    }


def paper():
    """Frames of 84 x 84 and 100 evaluation episodes [paper]; the rest, which it does not give, is ours."""
    return {
        "protocol": {"frame_size": (84, 84)},
        "network": {"motion_gain": 1.0},
        "environments": {"num": 8},
        "replay": {"capacity": 500_000, "importance_steps": 5_000_000},
        "exploration": {"random_steps": 20_000, "decay_steps": 250_000},
        "train": {
            "agent_steps": 5_000_000,
            "learning_rate": 1e-4,
            "target_period": 2_000,
            "log_every": 10_000,
            "evaluate_every": 250_000,
            "checkpoint_every": 250_000,
        },
        "evaluation": {"num_envs": 50, "episodes": 50},
    }


def nature():
    """200 million frames with sticky actions, as Machado et al. 2018 (Sec. 5) ask for."""
    return {
        "protocol": {"frame_size": (84, 84), "sticky_actions": 0.25, "noop_max": 1, "life_loss": False},
        "network": {"motion_gain": 1.0},
        "environments": {"num": 32},
        "replay": {"capacity": 1_000_000, "n_step": 1, "priority_exponent": 0.0},
        "exploration": {"random_steps": 50_000, "decay_steps": 1_000_000},
        "train": {
            "agent_steps": 50_000_000,
            "learning_rate": 6.25e-5,
            "decay_share": 0.0,
            "target_period": 8_000,
            "log_every": 20_000,
            "evaluate_every": 1_000_000,
            "checkpoint_every": 1_000_000,
        },
        "evaluation": {"num_envs": 50, "episodes": 50},
    }
