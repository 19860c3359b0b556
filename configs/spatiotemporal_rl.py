"""Permutation puzzles in space and time on one encoder (Büchler, Brattoli, Ommer, ECCV 2018).

python -m ssl_jax.main --config=configs/spatiotemporal_rl.py                               # both tasks
python -m ssl_jax.main --config=configs/spatiotemporal_rl.py:policy=joint                  # one for both
python -m ssl_jax.main --config=configs/spatiotemporal_rl.py:tasks=temporal,policy=uniform
python -m ssl_jax.main --config=configs/spatiotemporal_rl.py:tasks=spatial                 # as jigsaw_rl.py
python -m ssl_jax.main --config=configs/spatiotemporal_rl.py:paper,tasks=both

With both, every step takes a batch of pictures and one of clips, and learns from the sum of both losses; each
task has a permutation set and a player of its own; or, with policy=joint, a head of one policy, which sees
how well both tasks are solved and learns from the mean of their errors. A further task is a further section,
`rotation`, `context`, `arrow_of_time` or `colorization`: option extra=rotation. `paper` was never run whole.
"""

import copy

from ml_collections import ConfigDict

from ssl_jax.runtime.config import parse_arg, sibling

jigsaw_rl = sibling(__file__, "jigsaw_rl.py")
OPTIONS = jigsaw_rl.OPTIONS | {"policy": (*jigsaw_rl.OPTIONS["policy"], "joint")}


def get_config(arg: str | None = None) -> ConfigDict:
    preset, options = parse_arg(
        arg,
        presets=("smoke", "paper"),
        tasks=("both", "spatial", "temporal", "none"),
        extra=("none", "rotation", "context", "arrow_of_time", "colorization"),
        **OPTIONS,
    )
    joint = options.policy == "joint"
    if joint:
        options.policy = "uniform"  # which the section below takes the place of
    config = jigsaw_rl.get_config(
        ",".join([preset, *(f"{name}={getattr(options, name)}" for name in jigsaw_rl.OPTIONS)])
    )
    if joint:
        # The options of the policy that both share are in no task's section.
        config.selection = jigsaw_rl.player("policy_gradient", preset)
        config.spatial.selection = ConfigDict({"name": "joint", "slice": config.spatial.selection.slice})
    if options.tasks in ("both", "temporal"):
        config.temporal = temporal(config.spatial, preset)
    if options.tasks in ("temporal", "none"):
        del config.spatial
    if options.extra == "colorization":
        config.colorization = colorization(preset)
    elif options.extra != "none":
        config[options.extra] = extra(options.extra, preset)
    if preset == "default":
        config.train.learning_rate = 3e-3  # with 1e-3 the order of frames stays at chance for long
    config.data.stride = (1, 4)
    config.data.min_motion = 0.05
    return config


def temporal(spatial, preset):
    """The order of the frames of clips: measured, and its permutations chosen, as those in space."""
    section = copy.deepcopy(spatial)
    section.puzzle = clips(preset)
    # All orders of four frames, but one of an order and its reverse: most of what moves in these games could
    # as well move back.
    section.permutations.update({"num": 12, "merge_reversed": True, "include_identity": True})
    if preset == "paper":
        section.permutations.update({"num": 100, "include_identity": False})
    section.head = {
        "default": {"fc6": 64, "lstm": 64, "dropout": 0.0},
        "smoke": {"fc6": 16, "lstm": 16, "dropout": 0.0},
        "paper": {"fc6": 1024, "lstm": 256, "dropout": 0.5},
    }[preset]
    return section


def clips(preset):
    """How clips are shown; of u = 8 frames in `paper`, as codes of the symmetric group allow."""
    default = {
        "frames": 4,
        "size": (64, 64),
        "window": (64, 64),
        "around_motion": True,
        "jitter": 2,
        "color_jitter": 0.0,
        "grey": 0.0,
        "channel_drop": 0.0,
        "normalize": True,
    }
    paper = {
        "frames": 8,
        "size": (75, 75),
        "window": (225, 225),
        "jitter": 10,
        "color_jitter": 0.4,
        "grey": 0.3,
        "channel_drop": 0.5,
    }
    return default | {"default": {}, "smoke": {"size": (32, 32)}, "paper": paper}[preset]


def extra(name, preset):
    """A further task beside the permutations, whose few classes are drawn uniformly."""
    examples = {"default": 192, "smoke": 16, "paper": 1024}[preset]
    batch_size = {"default": 64, "smoke": 8, "paper": 256}[preset]
    colors = {"color_jitter": 0.4, "grey": 0.3} if preset == "paper" else {"color_jitter": 0.0, "grey": 0.0}
    size = (75, 75) if preset == "paper" else (32, 32)
    window = (225, 225) if preset == "paper" else (128, 128)
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
        "arrow_of_time": clips(preset),
    }[name]
    return {
        "weight": 1.0,
        "puzzle": puzzle,
        "head": {"default": {"fc6": 64, "fc7": 128}, "smoke": {"fc6": 16, "fc7": 16}, "paper": {}}[preset],
        "selection": {"name": "uniform", "slice": {"examples": examples, "batch_size": batch_size}},
        "validation": {"examples": 2 * examples, "batch_size": batch_size},
    }


def colorization(preset):
    """The colours of grey pictures: nobody chooses which, so there is no player."""
    paper = preset == "paper"
    examples = {"default": 384, "smoke": 16, "paper": 2048}[preset]
    return {
        "weight": 1.0,
        "puzzle": {
            "window": (225, 225) if paper else (128, 128),
            "size": {"default": (64, 64), "smoke": (32, 32), "paper": (225, 225)}[preset],
            "uniform": 0.5,
            "normalize": True,
        },
        "head": {"hidden": {"default": 64, "smoke": 16, "paper": 256}[preset]},
        "validation": {
            "examples": examples,
            "batch_size": {"default": 64, "smoke": 8, "paper": 256}[preset],
        },
    }
