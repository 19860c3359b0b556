"""The one command that every launcher starts: `python -m ssl_jax.main`, with the flags after `--`."""

import sys
from collections.abc import Callable, Sequence

from absl import flags

from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import paths
from ssl_jax.runtime.errors import InputError

PLACE_FLAGS = ("coordinator", "num_processes", "process_id")


def main_command(main_flags: Sequence[str]) -> list[str]:
    """The command of a run, the same for all of its processes, which learn their places by the environment.

    Args:
      main_flags: of `ssl_jax.main`.

    Raises:
      InputError: no config among them, or a place, or a workdir that is no path of a file system.
    """
    names = [flag.lstrip("-").partition("=")[0] for flag in main_flags]
    if "config" not in names:
        raise InputError("give the run after --, such as: -- --config=configs/jigsaw_rl.py")
    for name in set(names).intersection(PLACE_FLAGS):
        raise InputError(f"--{name} is set by the launcher for each process; remove it")
    for flag in main_flags:  # Read where the run is: its home directory may be another.
        name, _, value = flag.lstrip("-").partition("=")
        if name == "workdir":
            paths.refuse_url(value, "--workdir")
    return ["python", "-m", "ssl_jax.main", *main_flags]


def run_app(main: Callable[[list[str]], None]) -> None:
    """Runs a launcher: its own flags stand before `--`; `main` is given the command of the run.

    Bad input ends in one line and status 2.
    """
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    sys.argv, rest = sys.argv[:split], sys.argv[split + 1 :]
    config_lib.run_app(lambda argv: main(main_command(rest)), output_required="--dry_run" in sys.argv)


def define_dry_run() -> None:
    """The flag that all launchers have."""
    flags.DEFINE_bool("dry_run", False, "Print what would be started, and start nothing.")
