"""Metrics survive kills, resume without a step twice, and are JSON that others can read."""

import io
import json
import math
import re
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from ssl_jax.runtime import metrics
from ssl_jax.runtime.checkpoints import Checkpoints
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.fast


def write_run(workdir, steps, resume_step=None):
    writer = metrics.Metrics(workdir, resume_step=resume_step)
    for step in steps:
        writer.write(step, {"train/loss": step / 4})
        writer.write_rows(step, "spatial", {"accuracy": np.array([0.5, step]), "group": [0, 1]})
    writer.close()


def read_events(workdir):
    """All TensorBoard events, as a TFRecord reader of its own sees them."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[12 + length + 4 :]
    return events


def test_lines_are_the_contract(tmp_path):
    write_run(tmp_path, [1, 2])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "train/loss": 0.25},
        {"step": 2, "train/loss": 0.5},
    ]
    assert metrics.read(tmp_path / "selection.jsonl")[1] == {
        "step": 2,
        "task": "spatial",
        "accuracy": [0.5, 2.0],
        "group": [0, 1],
    }


def test_scalars_of_any_library_are_taken(tmp_path):
    writer = metrics.Metrics(tmp_path, resume_step=None)
    writer.write(np.int64(3), {"a": jnp.float32(0.5), "b": np.float16(2), "c": 1})
    writer.write_rows(jnp.int32(3), "spatial", {"p": jnp.arange(2.0), "g": np.arange(2)})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"step": 3, "a": 0.5, "b": 2.0, "c": 1.0}\n'
    assert (tmp_path / "selection.jsonl").read_text() == (
        '{"step": 3, "task": "spatial", "p": [0.0, 1.0], "g": [0, 1]}\n'
    )


def test_what_is_no_number_is_null_on_disk_and_nan_when_read(tmp_path):
    writer = metrics.Metrics(tmp_path, resume_step=None)
    writer.write(1, {"loss": math.nan, "norm": math.inf})
    writer.write_rows(1, "spatial", {"accuracy": [0.5, math.nan]})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "norm": null}\n'
    row = metrics.read(tmp_path / "metrics.jsonl")[0]
    assert math.isnan(row["loss"])
    assert math.isnan(metrics.read(tmp_path / "selection.jsonl")[0]["accuracy"][1])


@given(written=st.integers(0, 12), resume_step=st.none() | st.integers(0, 12), torn=st.booleans())
def test_lines_after_the_resume_step_are_dropped(tmp_path_factory, written, resume_step, torn):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    lines = "".join(f'{{"step": {step}, "x": 1.0}}\n' for step in range(written))
    path.write_text(lines + '{"step": 99, "x"' * torn)
    metrics._drop_lines_after(path, -1 if resume_step is None else resume_step)
    wanted = [] if resume_step is None else [s for s in range(written) if s <= resume_step]
    assert [row["step"] for row in metrics.read(path)] == wanted
    assert path.read_text() == lines[: len(path.read_text())]


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write_run(tmp_path / "a", range(1, 9))
    write_run(tmp_path / "b", range(1, 6))
    with open(tmp_path / "b" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "train/lo')  # killed while it wrote
    write_run(tmp_path / "b", range(4, 9), resume_step=3)
    for name in ("metrics.jsonl", "selection.jsonl"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


def test_tensorboard_has_every_value_and_the_purge_of_a_resume(tmp_path):
    write_run(tmp_path, [1, 2, 3])
    write_run(tmp_path, [3], resume_step=2)  # within the same second
    events = read_events(tmp_path)
    values = [(e.step, e.summary.value[0].simple_value) for e in events if e.summary.value]
    assert sorted(values) == [(1, 0.25), (2, 0.5), (3, 0.75), (3, 0.75)]
    starts = [e.step for e in events if e.HasField("session_log")]
    assert sorted(starts) == [0, 3]  # TensorBoard hides what came before from step 3 on


def test_killed_run_keeps_its_lines(tmp_path):
    code = f"""
import os, signal
from ssl_jax.runtime import metrics
from ssl_jax.runtime.checkpoints import Checkpoints
writer = metrics.Metrics({str(tmp_path)!r}, resume_step=None)
writer.write(1, {{"loss": 0.5}})
writer.write_rows(1, "spatial", {{"accuracy": [0.5]}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code])
    assert killed.returncode == -signal.SIGKILL
    assert metrics.read(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    assert metrics.read(tmp_path / "selection.jsonl") == [{"step": 1, "task": "spatial", "accuracy": [0.5]}]


def test_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2 is no JSON object"):
        metrics.Metrics(tmp_path, resume_step=3)
    assert metrics.read(tmp_path / "absent.jsonl") == []


def test_full_disk_is_a_sentence(tmp_path):
    writer = metrics.Metrics(tmp_path, resume_step=None)
    with open("/dev/full", "ab", buffering=0) as full:
        writer._files["metrics.jsonl"] = full
        with pytest.raises(InputError, match=r"/dev/full cannot be written: .*No space left"):
            writer.write(1, {"loss": 0.5})


def test_a_disk_too_full_for_tensorboard_is_a_sentence_too(tmp_path):
    """Other than with a thread that writes, which a run would wait for."""
    code = f"""
import resource, signal
from ssl_jax.runtime import metrics
from ssl_jax.runtime.errors import InputError
writer = metrics.Metrics({str(tmp_path)!r}, resume_step=None)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))  # of a file; those for TensorBoard are larger
try:
    for step in range(2000):
        writer.write(step, {{"loss": 0.5}})
except InputError as error:
    print(error)
writer.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r".*tensorboard/events\.\.\. cannot be written: .*\n", done.stdout)
    assert 300 < len(metrics.read(tmp_path / "metrics.jsonl")) < 700


def test_metrics_left_open_on_full_disk_complain_no_more(tmp_path):
    code = f"""
import resource, signal, sys
from ssl_jax.runtime import metrics
from ssl_jax.runtime.errors import InputError
writer = metrics.Metrics({str(tmp_path)!r}, resume_step=None)
writer.write(1, {{"loss": 0.5}})
writer.write_rows(1, "task", {{"drawn": [1, 2]}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, -1))
rows = {{"drawn": [1] * 50}}
for write in (lambda: writer.write(2, {{"loss": 0.5}}), lambda: writer.write_rows(2, "task", rows)):
    try:
        write()
    except InputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r"cannot be written: .*File too large", done.stdout)) == 2


def test_results_are_whole_or_absent(tmp_path):
    path = tmp_path / "results.json"
    value = {"accuracy": np.float32(0.5), "rows": jnp.arange(3), "bad": math.nan, "where": tmp_path}
    metrics.write_json(path, value)
    assert json.loads(path.read_text()) == {
        "accuracy": 0.5,
        "rows": [0, 1, 2],
        "bad": None,
        "where": str(tmp_path),
    }
    before = path.read_text()
    with pytest.raises(TypeError):
        metrics.write_json(path, {"a": object()})
    assert path.read_text() == before
    assert [item.name for item in tmp_path.iterdir()] == ["results.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_progress_prints_plain_lines_where_there_is_no_terminal(capsys):
    with metrics.Progress(1000, description="training") as progress:
        for step in range(1, 6):
            time.sleep(0.01)
            progress.update(step, {"loss": 2.5 / step})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2  # the first step and the end; 10 seconds did not pass
    assert lines[0] == "training 1/1000 loss 2.5"
    words = lines[1].split()
    assert words[:2] == ["training", "5/1000"]
    rate = float(words[2])
    assert 0 < rate < 100  # steps 1 to 5 took 40 ms at the least
    assert words[3] == "steps/s"
    minutes, seconds = map(int, words[4].split(":"))
    assert 60 * minutes + seconds == pytest.approx(995 / rate, rel=0.01, abs=1)
    assert words[5:] == ["left", "loss", "0.5"]


def test_progress_draws_a_bar_in_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with metrics.Progress(8, start=2, description="training") as progress:
        progress.update(8, {"accuracy": 0.75})
    assert "training" in terminal.getvalue()
    assert "8/8" in terminal.getvalue()
    assert "accuracy 0.75" in terminal.getvalue()


def test_versions_and_device_say_what_the_numbers_depend_on():
    versions = metrics.versions()
    assert {"python", "jax", "flax", "optax", "orbax-checkpoint", "numpy"} <= set(versions)
    assert versions["python"].startswith("3.")
    assert "CPU" in metrics.device_description()
    assert "4 simulated devices" in metrics.device_description()


def test_the_stopwatch_counts_the_first_block_that_compiles_apart():
    watch = metrics.Stopwatch({"step": 2.0})
    for _ in range(3):
        with watch("step", compiles=True):
            pass
        with watch("data"):
            pass
    assert watch.blocks == {"compilation": 1, "step": 2, "data": 3}
    assert watch.seconds.keys() == {"step", "compilation", "data"}
    assert watch.seconds["step"] >= 2


def test_a_lap_is_what_came_since_the_last(monkeypatch):
    clock = iter(range(0, 1000, 3))  # every block takes three seconds
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    watch = metrics.Stopwatch({"step": 40.0})
    for part in ("step", "step", "data"):
        with watch(part):
            pass
    assert watch.lap() == ({"step": 6, "data": 3}, {"step": 2, "data": 1})
    with watch("step"):
        pass
    seconds, blocks = watch.lap()
    assert (seconds["step"], blocks["step"]) == (3, 1)
    assert (seconds["data"], blocks["data"], seconds["never"], blocks["never"]) == (0, 0, 0, 0)
    assert watch.seconds == {"step": 49, "data": 3}
    assert not any(watch.lap()[1].values())


@pytest.fixture
def ledger(tmp_path):
    """A ledger over a checkpoint of step 3; and what it writes, once closed."""
    writer, checkpoints = metrics.Metrics(tmp_path, resume_step=None), Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, {"x": np.zeros(2)}, {})
    yield metrics.Ledger(writer, checkpoints, "try another rate")
    writer.close()
    checkpoints.close()


def test_a_page_has_means_over_the_steps_that_had_the_number(ledger, tmp_path):
    ledger.enter(4, {"a": jnp.float32(1), "b": 10})
    ledger.enter(5, {"a": 2.0})
    ledger.enter(6, {"a": np.float32(6), "c": -1})
    line = ledger.write_page(6, {"epsilon": 0.5})
    assert line == {"a": 3, "b": 10, "c": -1, "epsilon": 0.5}
    ledger.enter(7, {"a": 8})
    ledger.close_page()  # writes nothing yet
    ledger.enter(8, {"a": 9})
    assert ledger.write_page(8) == {"a": 8.5}
    assert ledger.write_page(9) == {}
    assert metrics.read(tmp_path / "metrics.jsonl") == [
        {"step": 6, "a": 3, "b": 10, "c": -1, "epsilon": 0.5},
        {"step": 8, "a": 8.5},
        {"step": 9},
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stops_the_run_and_says_where_to_go_back_to(bad, ledger, tmp_path):
    ledger.enter(4, {"train/a": 1.0})
    ledger.enter(5, {"train/a": 1.0, "train/b": jnp.float32(bad)})  # not read yet
    sentence = f"train/b is {bad} at step 5 and the last good checkpoint is of step 3: try another rate."
    with pytest.raises(InputError) as caught:
        ledger.enter(6, {"train/a": 1.0})
    assert str(caught.value) == sentence
    assert metrics.read(tmp_path / "metrics.jsonl") == []


def test_what_is_not_finite_is_found_before_a_page_is_closed(tmp_path):
    writer, checkpoints = metrics.Metrics(tmp_path, resume_step=None), Checkpoints(tmp_path / "checkpoints")
    for finish in ("close_page", "write_page"):
        ledger = metrics.Ledger(writer, checkpoints, "try another rate")
        ledger.enter(1, {"loss": math.nan})
        with pytest.raises(InputError, match="loss is nan at step 1 and there is no checkpoint: try another"):
            getattr(ledger, finish)(*([1] if finish == "write_page" else []))
    writer.close()
    checkpoints.close()
