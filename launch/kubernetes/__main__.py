"""Submits one run to Kubernetes as a JobSet: `jobset.yaml` filled in and given to `kubectl apply`.

python -m launch.kubernetes --name=jigsaw --image=IMAGE --claim=CLAIM --processes=2 --gpus_per_process=8 \
    -- --config=configs/jigsaw_rl.py:paper --workdir=/runs/jigsaw
python -m launch.kubernetes --name=jigsaw --image=IMAGE --claim=CLAIM --dry_run -- --config=...   # prints it

The image holds this repository as its working directory. Needs kubectl, and JobSet in the cluster.
"""

import json
import re
import string
import subprocess
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import command as command_lib
from ssl_jax.runtime.errors import InputError

TEMPLATE = Path(__file__).with_name("jobset.yaml")
PORT = 8476


def render(
    command: Sequence[str], *, name: str, image: str, claim: str, processes: int, gpus_per_process: int
) -> str:
    """The JobSet of a run, in YAML.

    Args:
      command: of the run.
      name: of the JobSet.
      image: of the container.
      claim: persistent volume claim, mounted at /runs.
      processes: pods.
      gpus_per_process: GPUs of a pod; 0 for none.

    Raises:
      InputError: a name that Kubernetes does not take, or a workdir that would be lost with its pod.
    """
    # A pod is called NAME-workers-0-INDEX, and may have 63 characters.
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise InputError(
            f"--name={name} must be up to 40 small letters, digits and -, and begin with a letter"
        )
    workdirs = [flag.partition("=")[2] for flag in command if flag.lstrip("-").startswith("workdir=")]
    if not any(workdir.startswith("/runs/") for workdir in workdirs):
        raise InputError("the run needs --workdir=/runs/NAME, the volume that outlives its pods")
    values = {
        "name": name,
        "image": image,
        "claim": claim,
        "processes": processes,
        "processes_text": str(processes),
        "coordinator": f"{name}-workers-0-0.{name}:{PORT}",
        "limits": {"nvidia.com/gpu": gpus_per_process} if gpus_per_process else {},
        # Kubernetes would put in variables for $(NAME).
        "command": [word.replace("$(", "$$(") for word in command],
    }
    # JSON is YAML.
    return string.Template(TEMPLATE.read_text()).substitute({k: json.dumps(v) for k, v in values.items()})


def main(command: list[str]) -> None:
    """Applies the JobSet, or prints it."""
    names = ("name", "image", "claim", "processes", "gpus_per_process")
    values = {name: flags.FLAGS[name].value for name in names}
    for name in ("name", "image", "claim"):
        if not values[name]:
            raise InputError(
                f"give --{name}: {flags.FLAGS[name].help[0].lower()}{flags.FLAGS[name].help[1:]}"
            )
    manifest = render(command, **values)
    if flags.FLAGS.dry_run:
        print(manifest)
        return
    try:
        subprocess.run(["kubectl", "apply", "-f", "-"], input=manifest, text=True, check=True)
    except FileNotFoundError:
        raise InputError("kubectl is not installed; --dry_run prints what to apply") from None
    except subprocess.CalledProcessError as error:
        raise InputError(f"kubectl apply failed with status {error.returncode}, see above") from None


def define_flags() -> None:
    """The flags of the program. Not defined on import, for other programs have flags of the same names."""
    flags.DEFINE_string("name", None, "Name of the JobSet.")
    flags.DEFINE_string("image", None, "Image of the container.")
    flags.DEFINE_string("claim", None, "Persistent volume claim that all pods can write.")
    flags.DEFINE_integer("processes", 1, "Pods, each one process.", lower_bound=1)
    flags.DEFINE_integer("gpus_per_process", 1, "GPUs of each pod.", lower_bound=0)
    command_lib.define_dry_run()


if __name__ == "__main__":
    define_flags()
    command_lib.run_app(main)
