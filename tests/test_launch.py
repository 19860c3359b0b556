"""Launchers: what they would start, and, of those of this machine, what they do when something happens."""

import importlib.util
import os
import shlex
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import yaml
from processes import ROOT

from launch import slurm
from launch.kubernetes import __main__ as kubernetes

RUN = ["--config=configs/jigsaw_rl.py:smoke,policy=uniform", "--workdir=/runs/a b", "--config.seed=1"]
COMMAND = ["python", "-m", "ssl_jax.main", *RUN]
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed"
)


def launch(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False
    )


def python(module: str, *flags: str, **variables: str) -> subprocess.CompletedProcess:
    return launch(sys.executable, "-m", module, *flags, "--", *RUN, **variables)


def tpu_pod(*arguments: str) -> subprocess.CompletedProcess:
    return launch("launch/tpu_pod.sh", *arguments)


# --- What would be started


def test_local_dry_run_tells_each_process_its_place_and_its_gpus():
    flags = ("--processes=2", "--gpus_per_process=2", "--dry_run")
    done = python("launch.local", *flags, CUDA_VISIBLE_DEVICES="4,5,6,7")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    for index, (words, gpus) in enumerate(zip(lines, ("4,5", "6,7"), strict=True)):
        settings = dict(word.split("=", 1) for word in words[: -len(COMMAND)])
        assert words[-len(COMMAND) :] == COMMAND
        assert settings == {
            "JAX_COORDINATOR_ADDRESS": "localhost:8476",
            "JAX_COORDINATOR_BIND_ADDRESS": "localhost:8476",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            "CUDA_VISIBLE_DEVICES": gpus,
        }


@needs_submitit
def test_slurm_dry_run_prints_a_script():
    done = python(
        "launch.slurm", "--nodes=2", "--gpus_per_node=8", "--hours=1.5", "--partition=gpu", "--dry_run"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    asked = {"nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "time=90", "partition=gpu"}
    # Told in time to save, put back into the queue, and the log goes on where it was.
    asked |= {"requeue", f"signal=USR2@{slurm.SAVE_SECONDS}", "open-mode=append"}
    assert asked <= {line.removeprefix("#SBATCH --") for line in lines}
    assert any(line.startswith("srun ") and "submitit.core._submit" in line for line in lines)
    assert lines[-1] == f"# each task: {shlex.join(COMMAND)}"
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


def test_kubernetes_dry_run_is_a_jobset():
    flags = ("--name=jig", "--image=place/image:1", "--claim=disk", "--processes=4", "--gpus_per_process=8")
    done = python("launch.kubernetes", *flags, "--dry_run")
    assert done.returncode == 0, done.stderr
    jobset = yaml.safe_load(done.stdout)
    assert (jobset["kind"], jobset["metadata"]) == ("JobSet", {"name": "jig"})
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (4, 4, "Indexed")
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"] == COMMAND
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment == {
        "JAX_COORDINATOR_ADDRESS": "jig-workers-0-0.jig:8476",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": None,  # the field of the pod
    }
    assert {"name": "runs", "persistentVolumeClaim": {"claimName": "disk"}} in pod["volumes"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_kubernetes_leaves_dollars_of_the_command_alone():
    given = ["python", "--workdir=/runs/a", "--x=$(NAME) $name"]
    text = kubernetes.render(given, name="a", image="i", claim="c", processes=1, gpus_per_process=0)
    pod = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"] == ["python", "--workdir=/runs/a", "--x=$$(NAME) $name"]
    assert pod["containers"][0]["resources"] == {"limits": {}}


def test_tpu_pod_leaves_the_home_directory_to_the_hosts():
    done = tpu_pod("--name=pod", "--zone=z1-a", "--dir=~/my code", "--dry-run", "--", *RUN)
    remote = shlex.split(done.stdout)[-1].removeprefix("--command=")
    assert remote.startswith("cd ~/my\\ code && python ")


def test_tpu_pod_dry_run_is_one_command_for_all_hosts():
    assert launch("bash", "-n", "launch/tpu_pod.sh").returncode == 0
    assert (ROOT / "launch" / "tpu_pod.sh").stat().st_mode & stat.S_IXUSR
    done = tpu_pod("--name=pod", "--zone=z1-a", "--dir=my code", "--dry-run", "--", *RUN)
    assert done.returncode == 0, done.stderr
    *words, remote = shlex.split(done.stdout)
    assert words == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=z1-a", "--worker=all"]
    there = shlex.split(remote.removeprefix("--command="))
    assert there == ["cd", "my code", "&&", *COMMAND]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["launch.local", "--"], "give the run after --"),
        (["launch.local", "--", "--config=a.py", "--process_id=1"], "--process_id is told to each process"),
        (["launch.local", "--processes=0", "--", "--config=a.py"], "flag --processes=0"),
        (["launch.local", "--gpus_per_process=2", "--dry_run", "--", "--config=a.py"], "4 GPUs are needed"),
        (["launch.kubernetes", "--", "--config=a.py"], "give --name"),
        (["launch.kubernetes", "--name=A", "--image=i", "--claim=c", *["--", "--config=a.py"]], "--name=A"),
        (
            ["launch.kubernetes", "--name=a", "--image=i", "--claim=c", *["--", "--config=a.py"]],
            "--workdir=/runs/NAME",
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence):
    done = launch(sys.executable, "-m", *arguments, CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bad_input_of_the_shell_script_is_one_sentence():
    for arguments, sentence in (
        ([], "give --name=POD"),
        (["--name=a"], "give --zone=ZONE"),
        (["--name=a", "--zone=b"], "give the run after --"),
        (["--nam=a"], "unknown flag --nam=a; known: --name="),
    ):
        done = tpu_pod(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert sentence in done.stderr


# --- Processes of this machine


def start_local(*codes: str) -> subprocess.Popen:
    """`local.run` of processes that run these codes."""
    program = f"""
        from launch import local
        codes = {codes!r}
        command = ["python", "-c", "import os; exec(os.environ['CODE'])"]
        local.run(command, [{{"CODE": code}} for code in codes])
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_lines_are_printed_with_the_number_of_their_process():
    output, errors = (process := start_local("print('a\\nb')", "print('c')")).communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert sorted(output.splitlines()) == ["[0] a", "[0] b", "[1] c"]


def test_when_one_fails_all_end_and_its_last_lines_are_shown():
    waits = "import time; print('waits', flush=True); time.sleep(100)"
    fails = "import sys; print(*range(20), sep='\\n'); print('a bug', file=sys.stderr); sys.exit(3)"
    since = time.monotonic()
    output, errors = (process := start_local(waits, fails)).communicate(timeout=60)
    assert process.returncode == 1
    assert time.monotonic() - since < 60
    lines = errors.splitlines()
    assert lines[0] == "process 1 FAILED (exit status 3), and all were ended; its last lines:"
    assert lines[1:] == [*(f"    {i}" for i in range(13, 20)), "    a bug"]
    assert "[1] a bug" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_so_that_they_save(number):
    code = """if True:
        import signal, sys, time
        def save(*_):
            print("saved", flush=True)
            sys.exit(143)
        signal.signal(signal.SIGTERM, save)
        print("ready", flush=True)
        time.sleep(100)
    """
    process = start_local(code, code)
    assert {process.stdout.readline(), process.stdout.readline()} == {"[0] ready\n", "[1] ready\n"}
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert sorted(output.splitlines()) == ["[0] saved", "[1] saved"]
    assert process.returncode == 128 + number
    assert errors.startswith("Stopped; to go on: python ")


def test_processes_save_when_the_program_that_started_them_is_killed(tmp_path):
    code = f"""if True:
        import os, pathlib, signal, sys, time
        me = pathlib.Path({str(tmp_path)!r}, str(os.getpid()))
        def save(*_):
            me.with_suffix(".saved").touch()
            sys.exit(143)
        signal.signal(signal.SIGTERM, save)
        print("ready", flush=True)
        time.sleep(1000)
    """
    process = start_local(code, code)
    assert {process.stdout.readline(), process.stdout.readline()} == {"[0] ready\n", "[1] ready\n"}
    process.kill()
    process.communicate(timeout=60)
    last = time.monotonic() + 60
    while len(list(tmp_path.glob("*.saved"))) < 2:
        assert time.monotonic() < last
        time.sleep(0.01)


# --- A task of SLURM


@needs_submitit
def test_a_slurm_task_saves_before_it_is_requeued_and_signals_for_submitit_do_not_end_it(tmp_path):
    code = f"""if True:
        import os, pathlib, signal, sys, time
        def save(*_):
            pathlib.Path({str(tmp_path / "saved")!r}).touch()
            sys.exit(143)
        signal.signal(signal.SIGTERM, save)
        os.kill(os.getpid(), signal.SIGUSR2)  # as SLURM does to every process
        pathlib.Path({str(tmp_path / "ready")!r}).touch()
        time.sleep(100)
    """
    task = slurm.Task(["python", "-c", code])
    threading.Thread(target=task, daemon=True).start()  # stays there, for a job to be requeued is held
    last = time.monotonic() + 30
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < last
        time.sleep(0.01)
    again = task.checkpoint()
    assert (tmp_path / "saved").exists()
    assert again.function.command == task.command


def test_a_slurm_task_that_fails_says_so():
    slurm.Task(["python", "-c", ""])()
    with pytest.raises(RuntimeError, match="ended with status 3"):
        slurm.Task(["python", "-c", "raise SystemExit(3)"])()
