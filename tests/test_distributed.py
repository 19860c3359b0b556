"""Several processes that make one run: how they learn their places, talk, save and stop together."""

import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import processes
import pytest

from launch import local
from ssl_jax.runtime import distributed
from ssl_jax.runtime.checkpoints import restore_raw
from ssl_jax.runtime.distributed import Place
from ssl_jax.runtime.errors import InputError

OF_JOB = {"JAX_COORDINATOR_ADDRESS": "node1:99", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def test_a_place_comes_by_flags_or_environment():
    assert distributed.place(environment={}) is None
    assert distributed.place(environment={"JAX_PROCESS_ID": ""}) is None
    assert distributed.place("node1:99", 4, 0, environment={}) == Place("node1:99", 4, 0)
    assert distributed.place(environment=OF_JOB) == Place("node1:99", 4, 3)
    without = {name: value for name, value in OF_JOB.items() if name != "JAX_PROCESS_ID"}
    assert distributed.place(process_id=0, environment=without) == Place("node1:99", 4, 0)
    assert distributed.place(process_id=3, environment=OF_JOB) == Place("node1:99", 4, 3)


@pytest.mark.parametrize(
    ("given", "environment", "sentence"),
    [
        ({"num_processes": 2}, {}, "also needs --coordinator .or JAX_COORDINATOR_ADDRESS. and --process_id"),
        ({}, OF_JOB | {"JAX_PROCESS_ID": ""}, "also needs --process_id .or JAX_PROCESS_ID."),
        ({"num_processes": 2}, OF_JOB, "--num_processes=2 contradicts JAX_NUM_PROCESSES=4"),
        ({"process_id": 0}, OF_JOB, "--process_id=0 contradicts JAX_PROCESS_ID=3"),
        ({}, OF_JOB | {"JAX_PROCESS_ID": "4"}, "process_id=4 of num_processes=4 is out of range"),
        ({}, OF_JOB | {"JAX_PROCESS_ID": "-1"}, "process_id=-1 of num_processes=4 is out of range"),
        (
            {},
            OF_JOB | {"JAX_NUM_PROCESSES": "two"},
            "JAX_NUM_PROCESSES=two of the environment must be",
        ),
        ({}, OF_JOB | {"JAX_COORDINATOR_ADDRESS": "node1"}, "must be HOST:PORT, such as .*, not 'node1'"),
    ],
)
def test_a_place_that_is_incomplete_or_contradictory(given, environment, sentence):
    with pytest.raises(InputError, match=sentence):
        distributed.place(**given, environment=environment)


def test_one_process_starts_nothing(monkeypatch):
    for name in (*distributed.VARIABLES.values(), *distributed.SLURM_STEP):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("it starts"))
    distributed.start()
    distributed.start("localhost:99", 1, 0)
    for name in distributed.SLURM_STEP:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    distributed.start()
    assert distributed.gather({"a": [1, None]}) == [{"a": [1, None]}]


def test_a_step_of_slurm_with_several_tasks_is_left_to_jax(monkeypatch):
    for name in distributed.VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    for name in distributed.SLURM_STEP:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    seen = []
    monkeypatch.setattr(distributed, "_initialize", lambda timeout, **arguments: seen.append(arguments))
    distributed.start()
    assert seen == [{"cluster_detection_method": "slurm"}]


def test_a_coordinator_that_is_not_there_or_whose_port_is_taken():
    address = f"localhost:{local.free_port()}"
    with pytest.raises(InputError, match=f"process 1 does not reach .* at {address} within 0 seconds"):
        distributed.start(address, 2, 1, timeout_seconds=0)
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"process 0 cannot listen at port {port}"):
            distributed.start(f"localhost:{port}", 2, 0)


def test_processes_with_a_proxy_in_their_environment_talk_without_it():
    with socket.create_server(("localhost", 0)) as silent:  # accepts, and never answers
        proxy = f"http://localhost:{silent.getsockname()[1]}"
        code = """
        import os
        print(distributed.gather(os.environ["no_grpc_proxy"]))
        """
        variables = {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": ".example.org"}
        outputs = processes.outputs(processes.start(processes.joined(code), **variables))
    assert [output.splitlines()[-1] for output in outputs] == [str([".example.org,localhost"] * 2)] * 2


@pytest.mark.parametrize("proxy", [None, *distributed.PROXIES])
def test_process_that_waits_for_others_names_the_proxy(proxy, monkeypatch, capsys):
    for name in (*distributed.PROXIES, "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv(proxy, "http://name:secret@proxy:3128")
    distributed._say_what_is_awaited(300)
    said = capsys.readouterr().err
    assert said.startswith("waiting for the other processes of the run; after 300 seconds this one gives up")
    assert (f"{proxy} is set" in said) == (proxy is not None)
    assert "secret" not in said


def test_two_processes_talk_and_save_a_state_in_parts_and_whole(tmp_path):
    """Made by both, written once, restored by both onto their own parts."""
    code = f"""
    import json
    import jax, jax.numpy as jnp, numpy as np
    from ssl_jax.runtime import mesh as mesh_lib
    from ssl_jax.runtime.checkpoints import Checkpoints

    me = jax.process_index()
    facts = {{"said": distributed.gather({{"i": me, "text": "ü" * me}}), "devices": jax.device_count()}}
    mesh, layout = mesh_lib.make(), mesh_lib.Layout(fsdp=True)
    rows = mesh_lib.shard_batch({{"x": np.full((2, 3), me, np.float32)}}, mesh)["x"]
    facts["rows"], facts["sum"] = rows.shape, float(jax.jit(jnp.sum)(rows))
    w = np.arange(2.0**15, dtype=np.float32).reshape(256, 128)
    state = mesh_lib.place({{"w": w, "step": np.int32(7)}}, mesh, layout)
    facts["parts"] = [part.data.shape for part in state["w"].addressable_shards]
    checkpoints = Checkpoints({str(tmp_path / "c")!r})
    checkpoints.save(1, state, {{"batch": 5}}, {{}})
    zeros = jax.tree.map(lambda leaf: jax.jit(jnp.zeros_like, out_shardings=leaf.sharding)(leaf), state)
    step, restored, data = checkpoints.restore(zeros)
    mine = restored["w"].addressable_shards[0]
    facts["same"] = bool((np.asarray(mine.data) == w[mine.index]).all()) and int(restored["step"]) == 7
    facts["restored"] = [step, data, restored["w"].sharding == state["w"].sharding]
    with distributed.first_process_first():
        with open({str(tmp_path / "order")!r}, "a") as file:
            print(me, file=file)
    checkpoints.close()
    print(json.dumps(facts))
    """
    facts = [json.loads(output.splitlines()[-1]) for output in processes.run(code)]
    for each in facts:
        assert each["said"] == [{"i": 0, "text": ""}, {"i": 1, "text": "ü"}]
        assert (each["devices"], each["rows"], each["sum"]) == (2, [4, 3], 6)
        assert each["parts"] == [[128, 128]]
        assert each["same"]
        assert each["restored"] == [1, {"batch": 5}, True]
    assert (tmp_path / "order").read_text().split() == ["0", "1"]
    raw = restore_raw(tmp_path / "c")
    np.testing.assert_array_equal(raw["w"].ravel(), np.arange(2.0**15))


def test_two_processes_set_a_broken_checkpoint_aside_once(tmp_path):
    code = f"""
    import pathlib
    import jax, numpy as np
    from ssl_jax.runtime import mesh as mesh_lib
    from ssl_jax.runtime.checkpoints import Checkpoints

    directory = pathlib.Path({str(tmp_path)!r})
    checkpoints = Checkpoints(directory)
    state = mesh_lib.replicate({{"w": np.arange(4096.0)}}, mesh_lib.make())
    for step in (1, 2):
        checkpoints.save(step, state, {{}})
    checkpoints.wait()
    with distributed.first_process_first():
        if jax.process_index() == 0:
            for path in (directory / "2").rglob("*"):
                if path.is_file() and path.stat().st_size > 1000:
                    path.write_bytes(path.read_bytes()[:500])
    print(checkpoints.restore(state)[0])
    checkpoints.save(2, state, {{}})
    checkpoints.close()
    """
    assert [output.split()[-1] for output in processes.run(code)] == ["1", "1"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[:2] == ["1", "2"]
    assert [name.rpartition("-")[0] for name in names[2:]] == ["broken-2"]


def test_all_stop_at_the_same_step_whichever_is_told():
    code = """
    import time
    from jax.experimental import multihost_utils
    step = 0
    with distributed.StopTogether() as stop:
        while step < 2000 and not stop.at(step):
            multihost_utils.process_allgather(step)
            print(step, flush=True)
            time.sleep(0.01)
            step += 1
    stop.leave(step)
    """
    started = processes.start(processes.joined(code))
    assert started[1].stdout.readline().startswith(("0", "[Gloo]"))
    started[1].send_signal(signal.SIGINT)
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [128 + signal.SIGTERM] * 2, said
    last = [output.split()[-1] for output, _ in said]
    assert last[0] == last[1] != "1999"
    for _, errors in said:
        assert f"Stopped at step {int(last[0]) + 1} and saved" in errors


def test_a_failure_of_one_ends_it_at_once():
    """It does not wait at its end for the others, who wait for it."""
    code = """
    import time, jax
    from ssl_jax.runtime.errors import InputError
    with distributed.ending_together():
        if jax.process_index() == 1:
            raise InputError("the disk is full")
        time.sleep(100)
    """
    first, second = processes.start(processes.joined(code))
    try:
        _, errors = second.communicate(timeout=60)
        assert second.returncode == 2
        assert "the disk is full" in errors
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


def test_flags_of_the_front_door():
    done = subprocess.run(
        [sys.executable, "-m", "ssl_jax.main", "--config=configs/jigsaw_rl.py:smoke", "--num_processes=2"],
        cwd=processes.ROOT,
        env=os.environ | {"JAX_COORDINATOR_ADDRESS": "localhost:99"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: a run of several processes also needs --process_id (or JAX_PROCESS_ID)\n"
