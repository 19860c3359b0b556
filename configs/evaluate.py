"""What a pre-training run has learned: linear probes, retrieval, fine-tuning and the state probe.

python -m ssl_jax.main --config=configs/evaluate.py --config.checkpoint=runs/jigsaw_rl
python -m ssl_jax.main --config=configs/evaluate.py --config.checkpoint=runs/jigsaw_rl --config.which=last
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_jax.runtime.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    preset, options = parse_arg(arg, presets=("smoke",), which=("best", "last", "random"))
    config = ConfigDict(default())
    config.update({"default": {}, "smoke": smoke()}[preset])
    config.which = options.which
    return config


def default():
    return {
        "experiment": "evaluate",
        "seed": 0,
        "profile": False,  # true: a trace of a few steps, in WORKDIR/profile
        "watchdog_seconds": 600.0,  # without progress, after which all stacks are printed; 0: never
        "checkpoint": placeholder(str),  # work directory of a pre-training run
        "which": "best",  # or last, or random: the encoder as it is initialised
        "baseline": True,  # the encoder as it is initialised is judged beside
        "data": {
            "name": placeholder(str),  # by default what the run was trained on
            "data_dir": placeholder(str),
            "path": placeholder(str),  # of the data sets folder and videos
            "annotations": placeholder(str),  # of videos: UCF101's or HMDB51's split files
            "fold": placeholder(int),  # of these: 1, 2 or 3
            # By default those of the run, if it was trained on this data set, else those of the data set.
            "splits": {
                "train": placeholder(str),
                "validation": placeholder(str),
                "test": placeholder(str),
            },
            "image_size": placeholder(tuple),
            "label": placeholder(str),
            "batch_size": 48,
            "train_examples": 6000,  # pictures, or frames of games
            "validation_examples": 1000,
            "test_examples": 2000,
            "frames_per_video": 10,  # of the data set videos, evenly spaced; every video counts alike
            "max_videos": placeholder(int),  # of a split; by default all
        },
        "linear_probe": {
            "enabled": True,
            "layers": (),  # all
            "values": 9000,
            "solver": "lbfgs",
            "weight_decays": (1e-3, 1e-2, 1e-1),
            "iterations": 50,
            "tolerance": 1e-4,
            "epochs": 20,
            "batch_size": 256,
            "seed": 0,
        },
        "retrieval": {
            "enabled": True,
            "layer": placeholder(str),  # the last
            "pool": (2, 2),
            "queries": "test",
            "keys": "train",
            "top": (1, 5, 10, 20, 50),
            "clip_frames": 8,
            "state_bins": 8,
            "min_entropy": 0.6,
        },
        "finetune": {
            "enabled": True,
            "pool": (2, 2),
            "steps": 200,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "weight_decay": 1e-4,
            "from_layer": placeholder(str),  # all are trained
            "layer_decay": 0.7,
            "validate_every": 50,
            "patience": 4,
        },
        "state_probe": {
            "enabled": True,
            "layer": placeholder(str),  # the last
            "pool": (2, 2),
            "min_entropy": 0.6,
            "weight_decays": (1e-3, 1e-2, 1e-1),
        },
    }


def smoke():
    return {
        "data": {"batch_size": 8, "train_examples": 96, "validation_examples": 32, "test_examples": 64},
        "linear_probe": {"values": 300, "solver": "sgd", "weight_decays": (1e-2, 1e-1), "epochs": 2},
        "finetune": {"steps": 4, "batch_size": 8, "validate_every": 2},
    }
