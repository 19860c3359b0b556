"""Permutation puzzles in space and time on one encoder (Büchler, Brattoli, Ommer, ECCV 2018).

python -m ssl_jax.main --config=configs/spatiotemporal_rl.py                               # both tasks
python -m ssl_jax.main --config=configs/spatiotemporal_rl.py:tasks=temporal,policy=uniform
python -m ssl_jax.main --config=configs/spatiotemporal_rl.py:tasks=spatial                 # as jigsaw_rl.py
python -m ssl_jax.main --config=configs/spatiotemporal_rl.py:paper,tasks=both

With both, every step takes a batch of pictures and one of clips, and learns from the sum of both losses; each
task has a permutation set and a player of its own. A further task is a further section, `rotation`, `context`
or `arrow_of_time`: option extra=rotation. `paper` was never run whole.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_jax.runtime.config import parse_arg, sibling

jigsaw_rl = sibling(__file__, "jigsaw_rl.py")


def get_config(arg: str | None = None) -> ConfigDict:
    preset, options = parse_arg(
        arg,
        presets=("smoke", "paper"),
        tasks=("both", "spatial", "temporal", "none"),
        extra=("none", "rotation", "context", "arrow_of_time"),
        **jigsaw_rl.OPTIONS,
    )
    config = jigsaw_rl.get_config(f"{preset},policy={options.policy},encoder={options.encoder}")
    if options.tasks in ("both", "temporal"):
        config.temporal = temporal(preset)
        config.temporal.selection.name = options.policy
        config.temporal.selection.update(jigsaw_rl.player(options.policy, preset))
    if options.tasks in ("temporal", "none"):
        del config.spatial
    if options.extra != "none":
        config[options.extra] = extra(options.extra, preset)
    if preset == "default":
        config.train.learning_rate = 3e-3  # with 1e-3 the order of frames stays at chance for long
    config.data.stride = (1, 4)
    config.data.min_motion = 0.05
    return config


def temporal(preset):
    """The order of the frames of clips; of u = 8 in `paper`, as codes of the symmetric group allow."""
    section = ConfigDict(
        {
            "weight": 1.0,
            "puzzle": {
                "frames": 4,
                "size": (64, 64),
                "window": (64, 64),
                "around_motion": True,
                "jitter": 2,
                "color_jitter": 0.0,
                "grey": 0.0,
                "channel_drop": 0.0,
                "normalize": True,
            },
            "permutations": {
                # All orders of four frames, but one of an order and its reverse: most of what moves in
                # these games could as well move back.
                "num": 12,
                "merge_reversed": True,
                "method": "greedy",
                "seed": 0,
                "path": placeholder(str),
                "index_base": placeholder(int),
                "include_identity": True,
            },
            "head": {"fc6": 64, "lstm": 64, "dropout": 0.0},
            "selection": {
                "slice": {"examples": 192, "batch_size": 64, "classes_per_example": placeholder(int)}
            },
            "validation": {"examples": 400, "batch_size": 80, "classes_per_example": placeholder(int)},
        }
    )
    changes = {
        "default": {},
        "smoke": {
            "puzzle": {"size": (32, 32), "window": (64, 64)},
            "head": {"fc6": 16, "lstm": 16},
            "selection": {"slice": {"examples": 16, "batch_size": 8}},
            "validation": {"examples": 16, "batch_size": 8},
        },
        "paper": {
            "puzzle": {
                "frames": 8,
                "size": (75, 75),
                "window": (225, 225),
                "jitter": 10,
                "color_jitter": 0.4,
                "grey": 0.3,
                "channel_drop": 0.5,
            },
            "permutations": {"num": 100, "include_identity": False},
            "head": {"fc6": 1024, "lstm": 256, "dropout": 0.5},
            "selection": {"slice": {"examples": 1024, "batch_size": 256}},
            "validation": {"examples": 10_000, "batch_size": 256},
        },
    }
    section.update(changes[preset])
    return section


def extra(name, preset):
    """A further task beside the permutations, whose few classes are drawn uniformly."""
    examples = {"default": 192, "smoke": 16, "paper": 1024}[preset]
    batch_size = {"default": 64, "smoke": 8, "paper": 256}[preset]
    colors = {"color_jitter": 0.4, "grey": 0.3} if preset == "paper" else {"color_jitter": 0.0, "grey": 0.0}
    size = (75, 75) if preset == "paper" else (32, 32)
    window = (225, 225) if preset == "paper" else (128, 128)
    clip = temporal(preset).puzzle.to_dict()
    puzzle = {
        "rotation": {"window": window, "size": size, "normalize": True} | colors,
        "context": {
            "patch": (64, 64) if preset == "paper" else size,
            "gap": 16,
            "jitter": 7,
            "channel_shift": 0,
            "color_drop": 0.5 if preset == "paper" else 0.0,
        }
        | colors,
        "arrow_of_time": clip,
    }[name]
    return {
        "weight": 1.0,
        "puzzle": puzzle,
        "head": {"default": {"fc6": 64, "fc7": 128}, "smoke": {"fc6": 16, "fc7": 16}, "paper": {}}[preset],
        "selection": {"name": "uniform", "slice": {"examples": examples, "batch_size": batch_size}},
        "validation": {"examples": 2 * examples, "batch_size": batch_size},
    }
