"""Jigsaw puzzles with a learned permutation policy (Büchler, Brattoli, Ommer, ECCV 2018).

python -m ssl_jax.main --config=configs/jigsaw_rl.py                    # default: a laptop, minutes
python -m ssl_jax.main --config=configs/jigsaw_rl.py:policy=uniform     # the usual practice
python -m ssl_jax.main --config=configs/jigsaw_rl.py:encoder=nature     # the trunk of a Q-network
python -m ssl_jax.main --config=configs/jigsaw_rl.py:evaluation=all     # and probes, retrieval, fine-tuning
python -m ssl_jax.main --config=configs/jigsaw_rl.py:paper              # ImageNet, CaffeNet

Default, seed 0, measured on 2 cores of an Intel Xeon with JAX 0.10.2: 4 min 13 s with the rendering of the
data; 60.6 % of held-out puzzles solved under all 100 permutations (chance 1 %); probe F1 of the trained
encoder 0.473, of the random one 0.443 (results/jigsaw_rl/results.json). `paper` was never run whole.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_jax.runtime.config import parse_arg, sibling

OPTIONS = {
    "policy": (
        "policy_gradient",
        "uniform",
        "round_robin",
        "curriculum",
        "loss_prioritized",
        "exp3",
        "q_learning",
    ),
    "encoder": ("preset", "compact", "nature", "caffenet", "alexnet", "resnet18", "resnet50"),
    "evaluation": ("states", "all"),
}
evaluate = sibling(__file__, "evaluate.py")


def get_config(arg: str | None = None) -> ConfigDict:
    preset, options = parse_arg(arg, presets=("smoke", "paper"), **OPTIONS)
    config = ConfigDict(default())
    config.update({"default": {}, "smoke": smoke(), "paper": paper()}[preset])
    name = {"default": "compact", "smoke": "compact", "paper": "caffenet"}[preset]
    if options.encoder != "preset":
        name = options.encoder
    config.encoder = ConfigDict({"name": name} | ENCODERS.get(name, {}))
    if name == "nature" and preset != "paper":
        config.spatial.puzzle.tile = (36, 36)  # the smallest that its three convolutions take
    config.spatial.selection.name = options.policy
    config.spatial.selection.update(player(options.policy, preset))
    if options.evaluation == "all":
        config.evaluation = evaluation(preset)
    return config


def evaluation(preset):
    """What `configs/evaluate.py` judges the checkpoint of a run by, at the end of the run."""
    config = evaluate.get_config("smoke" if preset == "smoke" else None)
    del config.experiment, config.checkpoint  # this run's
    config.state_probe.enabled = False  # made anyway, see `probe`
    return config


# The stem of a ResNet for parts of 32 to 75 pixels; remat=true: less memory for a third more work.
ENCODERS = {
    "compact": {"width": 64},
    "resnet18": {"stem": "small", "width": 64, "remat": False},
    "resnet50": {"stem": "small", "width": 64, "remat": False},
}


def player(name, preset):
    """The section of a player; of the paper's, policy_gradient, everything but the period is ours."""
    # Even draws are ours, and teach more; see README, "What came out: who chooses".
    draws = {"draws": "independent" if preset == "paper" else "even"}
    looks = draws | {"period": {"default": 32, "smoke": 4, "paper": 500}[preset]}
    groups = looks | {"num_groups": 10}
    return {
        "uniform": {"draws": "independent"},
        "round_robin": {},
        # Half of the training with a pool that grows, half with the whole set.
        "curriculum": draws
        | {
            "steps": {"default": 300, "smoke": 12, "paper": 175_000}[preset],
            "start_share": 0.1,
            "order": "easy_first",
        },
        "loss_prioritized": looks | {"exponent": 1.0, "min_error": 0.01, "uniform_share": 0.1},
        "exp3": groups
        | {"learning_rate": 0.2, "uniform_share": 0.1, "weight_share": 0.001, "bounds_decay": 0.95},
        "policy_gradient": groups
        | {
            "hidden": 64,
            "learning_rate": 0.01,
            "entropy_bonus": 0.1,
            "baseline_decay": 0.9,
        },
        "q_learning": groups
        | {
            "hidden": 64,
            "learning_rate": 0.003,
            "discount": 0.5,
            "capacity": 256,
            "batch_size": 32,
            "updates": 4,
            "target_period": 10,
            "explore": {"default": 6, "smoke": 2, "paper": 50}[preset],
            "epsilon": 0.1,
            # Lest the solver sees nothing but one group for a period.
            "uniform_share": 0.5,
        },
    }[name]


def default():
    return {
        "experiment": "pretrain",
        "seed": 0,
        "precision": "float32",  # bfloat16, or params=float32,compute=bfloat16,output=float32 in any mixture
        "profile": False,  # true: a trace of a few steps, in WORKDIR/profile
        "watchdog_seconds": 600.0,  # without progress, after which all stacks are printed; 0: never
        "mesh": {"fsdp": False},  # true: each device holds a part of the parameters
        "data": {
            "name": "atari_frames",
            "data_dir": placeholder(str),
            "path": placeholder(str),  # of the data sets folder and videos
            "annotations": placeholder(str),  # of videos: UCF101's or HMDB51's split files
            "fold": 1,  # of these
            "splits": {
                "train": placeholder(str),
                "selection": placeholder(str),
                "validation": placeholder(str),
                "test": placeholder(str),
            },
            "image_size": (210, 160),
            "max_bad_share": 0.05,
            "workers": 0,
            "threads": 2,
            "prefetch": 4,
        },
        "spatial": {
            "weight": 1.0,
            "adjust_logits": True,  # ours: what is drawn more often is no reason to guess it
            "puzzle": {
                "grid": (3, 3),
                "window": (120, 120),
                "tile": (32, 32),
                "gap_jitter": True,
                # Off: frames of an emulator went through no lens, and a colour tells what a thing is.
                "color_jitter": 0.0,
                "grey": 0.0,
                "channel_shift": 0,
                "normalize": True,
            },
            "permutations": {
                "num": 100,
                "method": "greedy",
                "seed": 0,
                "path": placeholder(str),
                "index_base": placeholder(int),
                "include_identity": False,
            },
            "head": {"fc6": 64, "fc7": 256, "dropout": 0.0},
            "selection": {
                "slice": {"examples": 192, "batch_size": 64, "classes_per_example": placeholder(int)}
            },
            "validation": {"examples": 400, "batch_size": 80, "classes_per_example": placeholder(int)},
        },
        "train": {
            "steps": 600,
            "batch_size": 64,
            "accumulate": 1,
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "warmup_steps": 50,
            "schedule": "cosine",
            "weight_decay": 1e-4,
            "log_every": 10,
            "validate_every": 200,
            "checkpoint_every": 100,
            "keep_checkpoints": 2,
        },
        "probe": {
            "enabled": True,
            "pool": (2, 2),  # of 64 channels: 256 numbers a frame, as many as AtariARI's encoders give
            "min_entropy": 0.6,
            "weight_decays": (1e-3, 1e-2, 1e-1),
            "train_frames": 6000,
            "validation_frames": 1000,
            "test_frames": 2000,
            "batch_size": 50,
        },
    }


def smoke():
    return {
        "data": {"name": "atari_frames/tiny"},
        "spatial": {
            "permutations": {"num": 20},
            "head": {"fc6": 16, "fc7": 32},
            "selection": {"slice": {"examples": 16, "batch_size": 8}},
            "validation": {"examples": 16, "batch_size": 8},
        },
        "train": {
            "steps": 24,
            "batch_size": 8,
            "warmup_steps": 4,
            "log_every": 2,
            "validate_every": 12,
            "checkpoint_every": 4,
        },
        "probe": {"train_frames": 200, "validation_frames": 50, "test_frames": 100},
    }


def paper():
    """ImageNet, CaffeNet and batches of 256 [paper]; the schedule follows Noroozi and Favaro [ours]."""
    return {
        "data": {
            "name": "imagenet2012",
            "splits": {"test": "validation"},
            "image_size": (256, 256),
            "workers": 8,
        },
        "spatial": {
            "adjust_logits": False,
            "puzzle": {
                "window": (255, 255),
                "tile": (75, 75),
                "color_jitter": 0.4,
                "grey": 0.5,
                "channel_shift": 2,
            },
            "permutations": {"num": 100},
            "head": {"fc6": 1024, "fc7": 4096, "dropout": 0.5},
            "selection": {"slice": {"examples": 1024, "batch_size": 256}},
            "validation": {"examples": 10_000, "batch_size": 256},
        },
        "train": {
            "steps": 350_000,
            "batch_size": 256,
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "warmup_steps": 1000,
            "schedule": "step",
            "weight_decay": 5e-4,
            "log_every": 100,
            "validate_every": 10_000,
            "checkpoint_every": 2_000,
        },
    }
