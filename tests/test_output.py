"""Nobody reads what a program prints: a run goes on to its end, and what is read by head ends quietly."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import runs

# A program that says things in every way, and has its result on disk.
PROGRAM = """
    import logging, os, sys, warnings
    import absl.logging, rich.console, rich.table
    from ssl_jax.runtime import config, metrics

    def main(argv):
        for step in range(3):
            print("a line", step, flush=True)
            print("an error", file=sys.stderr)
            absl.logging.error("an error of absl")
            logging.warning("a warning of logging")
            warnings.warn(f"a warning {step}")
        with metrics.Progress(3, description="training", seconds_between_lines=0) as progress:
            for step in range(3):
                progress.update(step)
        table = rich.table.Table("a", "b")
        table.add_row("1", "\\udcff\\u2192")
        rich.console.Console().print(table)
        rich.console.Console(stderr=True).print(table)
        print("x" * 100_000)
        with open(argv[0] + ".result", "w") as file:
            file.write("whole")

    if __name__ == "__main__":
        config.run_app(main, output_required="required" in os.environ)
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return path


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(runs.ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | variables


def broken_pipe() -> int:
    """The end for writing of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def hung_up() -> int:
    """A terminal that was closed."""
    master, slave = pty.openpty()
    os.close(master)
    return slave


REFUSALS = {
    "reader is gone": broken_pipe,
    "disk is full": lambda: os.open("/dev/full", os.O_WRONLY),
    "terminal is closed": hung_up,
    "open for reading only": lambda: os.open(os.devnull, os.O_RDONLY),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_program_whose_output_is_refused_goes_on(program, refusal):
    file = REFUSALS[refusal]()
    done = subprocess.run([sys.executable, program], env=environment(), stdout=file, stderr=file)
    os.close(file)
    assert (done.returncode, program.with_suffix(".py.result").read_text()) == (0, "whole")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_program_whose_reader_is_gone_says_nothing_of_it(program, unbuffered):
    file = broken_pipe()
    command = [sys.executable, program]
    variables = environment(PYTHONUNBUFFERED=unbuffered)
    done = subprocess.run(command, env=variables, stdout=file, stderr=subprocess.PIPE, text=True)
    os.close(file)
    assert (done.returncode, program.with_suffix(".py.result").read_text()) == (0, "whole")
    assert "an error of absl" in done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_program_without_standard_streams_goes_on_and_its_files_are_no_streams(program):
    done = subprocess.run(["sh", "-c", f'exec "{sys.executable}" {program} <&- >&- 2>&-'], env=environment())
    assert (done.returncode, program.with_suffix(".py.result").read_text()) == (0, "whole")


def test_program_that_is_run_for_its_output_ends_quietly_with_its_reader(program):
    command = f'"{sys.executable}" {program} 2>{program}.errors | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command], env=environment(required="1"), capture_output=True, text=True
    )
    assert done.stdout == "a line 0\n"
    assert done.returncode == 128 + signal.SIGPIPE
    assert not program.with_suffix(".py.result").exists()
    errors = (program.parent / "program.py.errors").read_text()
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_program_that_is_run_for_its_output_says_where_it_cannot_be_written(program):
    command = f'"{sys.executable}" {program} >/dev/full'
    done = subprocess.run(
        ["bash", "-c", command], env=environment(required="1"), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert (
        "error: standard output cannot be written ([Errno 28] No space left on device); send it else"
        in done.stderr
    )


def test_terminal_made_non_blocking_by_another_program_gets_every_line(program):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = subprocess.Popen([sys.executable, program], env=environment(), stdout=writing)
    os.close(writing)
    with open(reading) as file:
        lines = file.read().splitlines()
    assert process.wait() == 0
    assert lines[-1] == "x" * 100_000


def finish_unheard(command: list[str], **variables: str) -> int:
    """Runs a command whose output nobody takes."""
    writing = broken_pipe()
    done = subprocess.run(
        command, env=environment(**variables), stdout=writing, stderr=writing, cwd=runs.ROOT
    )
    os.close(writing)
    return done.returncode


def test_run_whose_reader_is_gone_has_all_of_its_results(tmp_path, atari_tiny_dir):
    overrides = runs.SMALL_PUZZLES | {"train.steps": 4, "train.log_every": 1, "probe.enabled": False}
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    run = ["--config=configs/jigsaw_rl.py:smoke", f"--workdir={tmp_path / 'run'}", *flags]
    command = [sys.executable, "-m", "ssl_jax.main", *run]
    assert finish_unheard(command, TFDS_DATA_DIR=atari_tiny_dir) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["protocol"]["train"]["steps"] == 4
    assert runs.progress(tmp_path / "run") == 4
    assert runs.saved_steps(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").stat().st_size


def test_launcher_whose_reader_is_gone_still_empties_the_pipes_of_its_processes():
    talk = "print('a line of some length' * 20_000)"
    code = f"""
        import sys
        from ssl_jax.runtime import output
        from launch import local
        output.guard()
        local.run(["python", "-c", {talk!r}], [{{}}, {{}}])
    """
    assert finish_unheard([sys.executable, "-c", textwrap.dedent(code)]) == 0


@pytest.mark.parametrize("nohup", [[], ["nohup"]])
def test_run_whose_terminal_is_closed_stops_at_a_step_unless_under_nohup(tmp_path, nohup):
    code = """
        import sys, time
        from ssl_jax.runtime import files, interruption, output
        output.guard()
        with interruption.StopSignal() as stop:
            print("ready", flush=True)
            while True:
                time.sleep(0.01)
                try:
                    open("/dev/tty").close()
                except OSError:
                    break  # The terminal is closed, and its signal has come if it ever does.
            time.sleep(0.1)
            print("a line that nobody reads", flush=True)
        files.write_text(sys.argv[1], str(stop.received and stop.received.name))
    """
    if shutil.which("setsid") is None:
        pytest.skip("there is no setsid, which gives a program a terminal of its own")
    terminal, inside = pty.openpty()
    command = ["setsid", "--ctty", *nohup, sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(
        [*command, str(tmp_path / "received")],
        cwd=tmp_path,
        env=environment(),
        **dict.fromkeys(("stdin", "stdout", "stderr"), inside),
    )
    os.close(inside)
    said = tmp_path / "nohup.out"  # in place of a terminal
    while nohup and not (said.exists() and "ready" in said.read_text()):
        time.sleep(0.01)
    assert nohup or b"ready" in os.read(terminal, 100)
    os.close(terminal)
    assert process.wait() == 0
    assert (tmp_path / "received").read_text() == ("None" if nohup else "SIGHUP")
