"""The table of Agarwal, Sinha and Ayush: networks x where their weights come from, on two splits.

python -m launch.sweep --config=configs/deepfake_table.py --workdir=runs/deepfake_table
python -m launch.sweep --config=configs/deepfake_table.py:smoke --dry_run     # only prints the commands
python -m launch.sweep --config=configs/deepfake_table.py --config.axes.init="('random','rotation')"

The videos are manipulated_clips, a stand-in without any deepfakes. Rows that begin with a pre-training share
one run of it, with seed 0, which the sweep makes first: four of them. Rows with the weights of ImageNet are
left out, and listed, until weights/alexnet.safetensors and weights/resnet50.safetensors are there; they are
torchvision's, converted by

    safetensors.torch.save_file(torch.load("alexnet-owt-7be5be79.pth", weights_only=True), FILE)

Networks are small, see `configs/deepfake.py`, except those with the weights of ImageNet. Rows over BigBiGAN
are not here. All other rows were run, two at a time on 2 cores of an AMD EPYC: 2 to 9 minutes each (AlexNet),
5 to 16 (ResNet-50), the longer ones beside other work; what came out is in results/deepfake_table.
"""

from ml_collections import ConfigDict

from ssl_jax.runtime.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    preset, options = parse_arg(arg, presets=("smoke",), seeds=3)
    models = ("compact",) if preset == "smoke" else ("alexnet", "resnet50")
    return ConfigDict(
        {
            "base": "configs/deepfake.py",
            "preset": preset,
            "axes": {
                "model": models,
                "init": ("random", "rotation", "jigsaw", "imagenet"),
                "split": ("random", "hard"),
            },
            "compare": "split",
            "baseline": "hard",
            "seeds": tuple(range(options.seeds)),
            "overrides": (
                "init.runs={workdir}",
                "smoothgrad.frames=0",  # maps take a minute each to compile
                *(("train.steps=1000",) if preset == "default" else ()),
            ),
            "first": {
                f"{task}-{model}": pretraining(task, model, preset)
                for model in models
                for task in ("rotation", "jigsaw")
            },
            "needs": {"imagenet": "weights/{model}.safetensors"},
        }
    )


def pretraining(task, model, preset):
    """A run on the frames that the stand-in is made of: config file and overrides."""
    arg = [] if preset == "default" else [preset]
    words = {
        "alexnet": [],
        "resnet50": ["encoder.stem=standard", "encoder.width=16"],
        "compact": ["encoder.width=8"],
    }[model] + ["probe.enabled=False"]
    if preset == "default":
        words += ["train.steps=400"] + (["train.learning_rate=3e-4"] if model == "alexnet" else [])
    if task == "rotation":
        arg += ["tasks=none", "extra=rotation", f"encoder={model}"]
        if preset == "default":
            words += ["rotation.puzzle.window=(160,160)", "rotation.puzzle.size=(80,80)"]
        return " ".join([f"configs/spatiotemporal_rl.py:{','.join(arg)}", *words])
    arg += ["policy=policy_gradient", f"encoder={model}"]
    if preset == "default":
        words += ["train.batch_size=32"]
        if model == "alexnet":  # takes no tiles below 63 pixels, so frames are shown larger than they are
            words += [
                "data.image_size=(294,224)",
                "spatial.puzzle.window=(216,216)",
                "spatial.puzzle.tile=(64,64)",
            ]
    return " ".join([f"configs/jigsaw_rl.py:{','.join(arg)}", *words])
