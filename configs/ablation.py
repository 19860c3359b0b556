"""The ablation: tasks in space, in time and both x the players who choose the permutations x seeds.

python -m launch.sweep --config=configs/ablation.py --workdir=results/ablation --parallel=2
python -m launch.sweep --config=configs/ablation.py:seeds=3
python -m launch.sweep --config=configs/ablation.py --config.axes.policy="('uniform','policy_gradient')"
python -m launch.sweep --config=configs/ablation.py:smoke --dry_run      # only prints the commands

Every run makes the same number of steps with the same batches: a sweep whose runs do not train alike is
refused. `overrides` are for all runs. A value of an axis may bring its own, after blanks, of keys that all
of its runs have: with --config.axes.tasks="('spatial',)" the value
"policy_gradient spatial.selection.period=16" is one more player. So is, with
--config.axes.tasks="('both',)", the value "joint", the policy that both tasks share.

By default runs are smaller than those of `configs/spatiotemporal_rl.py`, by `SMALL`: half the width, half the
batches, a third more steps, half the frames to probe. --config.overrides replaces them. On one core of an
Intel Xeon, with other work beside, a run of the task in space takes 2 min, one in time 4 min 20 s, one of
both 6 min 30 s; all 105 should take less than 4 hours on 2 cores.

results/ablation has five seeds of all players in space, of uniform and policy_gradient in time, and of these
two and joint in both; the README says what came out. results/ablation_spatial has uniform and policy_gradient
in space at the full size, with train.learning_rate=1e-3.
"""

from ml_collections import ConfigDict

from ssl_jax.runtime.config import parse_arg

SMALL = (
    "encoder.width=32",
    "train.batch_size=32",
    "train.steps=800",
    "probe.train_frames=3000",
    "probe.validation_frames=500",
    "probe.test_frames=1000",
)


def get_config(arg: str | None = None) -> ConfigDict:
    preset, options = parse_arg(arg, presets=("smoke", "paper"), seeds=5)
    players = (
        "uniform",
        "round_robin",
        "curriculum",
        "loss_prioritized",
        "exp3",
        "policy_gradient",
        "q_learning",
    )
    return ConfigDict(
        {
            "base": "configs/spatiotemporal_rl.py",
            "preset": preset,
            "axes": {
                "tasks": ("spatial", "temporal", "both"),
                "policy": ("uniform", "policy_gradient") if preset == "smoke" else players,
            },
            "compare": "policy",
            "baseline": "uniform",
            "seeds": tuple(range(options.seeds)),
            "overrides": SMALL if preset == "default" else (),
        }
    )
