"""Checkpoints: exact, atomic, checked, and never a silent start from nothing."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime.checkpoints import Checkpoints, restore_raw
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.fast


@flax.struct.dataclass
class State:
    params: Any
    opt_state: Any
    key: jax.Array
    typed_key: jax.Array
    step: jax.Array
    empty: jax.Array


def make_state(seed: int, width: int = 4) -> State:
    rng = np.random.default_rng(seed)
    params = {
        "conv": {
            "kernel": jnp.asarray(rng.standard_normal((3, width)), jnp.float32),
            "bias": jnp.asarray(rng.standard_normal(width), jnp.bfloat16),
        },
        # Large enough that it does not fit into the index that orbax writes beside it.
        "dense": {"kernel": jnp.asarray(rng.standard_normal((200, 100)), jnp.float32)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return State(
        params=params,
        opt_state=optimizer.init(params),
        key=jax.random.PRNGKey(seed),
        typed_key=jax.random.key(seed),
        step=jnp.int32(seed),
        empty=jnp.zeros((0, 3)),
    )


def assert_same(left: State, right: State) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save_steps(directory, steps, **kwargs) -> None:
    checkpoints = Checkpoints(directory, **kwargs)
    for step in steps:
        checkpoints.save(step, make_state(step), {"position": step})
    checkpoints.close()


def step_names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_state_comes_back_bit_for_bit(tmp_path):
    save_steps(tmp_path, [7])
    checkpoints = Checkpoints(tmp_path)
    step, state, data_state = checkpoints.restore(make_state(0))
    assert (step, data_state) == (7, {"position": 7})
    assert_same(state, make_state(7))
    # The same random numbers follow.
    np.testing.assert_array_equal(jax.random.normal(state.typed_key), jax.random.normal(jax.random.key(7)))
    checkpoints.close()


def test_host_arrays_stay_on_the_host_with_all_their_bits(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {"seen": np.array(2**40 + 1), "mean": np.array([1 / 3]), "epoch": 3}
    checkpoints.save(1, state, {})
    _, restored, _ = checkpoints.restore({"seen": np.array(0), "mean": np.zeros(1), "epoch": 0})
    assert restored == state
    assert restored["seen"].dtype == np.int64
    checkpoints.close()


def test_nothing_there_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "checkpoints")
    assert checkpoints.restore(make_state(0)) is None
    assert checkpoints.latest_step is None
    assert checkpoints.best_step is None
    checkpoints.close()


def test_state_may_be_donated_and_data_state_changed_while_it_is_written(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state):
        return jax.tree.map(lambda x: (x * 2 + 1).astype(x.dtype), state)

    state = {"w": jnp.arange(1_000_000.0), "n": jnp.uint32(3)}
    data_state = {"position": 1}
    expected = jax.tree.map(np.array, state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, data_state)
    data_state["position"] = 2
    for _ in range(5):
        state = train_step(state)
    jax.block_until_ready(state)
    _, restored, data_state = checkpoints.restore(state)
    assert data_state == {"position": 1}
    for name, value in expected.items():
        np.testing.assert_array_equal(restored[name], value)
    checkpoints.close()


def test_newest_and_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, best_metric="accuracy")
    for step, accuracy in [(1, 0.1), (2, 0.9), (3, 0.2), (4, float("nan")), (5, 0.3)]:
        checkpoints.save(step, {"w": jnp.float32(step)}, {}, {"accuracy": accuracy})
    checkpoints.save(6, {"w": jnp.float32(6)}, {})
    checkpoints.wait()
    assert step_names(tmp_path) == ["2", "5", "6"]
    assert (checkpoints.latest_step, checkpoints.best_step) == (6, 2)
    checkpoints.close()
    # A run that resumes remembers which was best.
    checkpoints = Checkpoints(tmp_path, keep=2, best_metric="accuracy")
    assert (checkpoints.latest_step, checkpoints.best_step) == (6, 2)
    checkpoints.save(7, {"w": jnp.float32(7)}, {}, {"accuracy": 0.95})
    checkpoints.wait()
    assert step_names(tmp_path) == ["6", "7"]
    assert checkpoints.best_step == 7
    checkpoints.close()


def test_a_step_that_is_saved_stays_as_it_is(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.float32(1)}, {})
    checkpoints.save(1, {"w": jnp.float32(2)}, {})
    assert checkpoints.restore({"w": jnp.float32(0)})[1]["w"] == 1
    checkpoints.close()


def damage(path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "truncated":
        path.write_bytes(content[:middle])
    elif how == "flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "removed"])
def test_any_damaged_file_falls_back_or_does_no_harm(tmp_path, how, caplog):
    save_steps(tmp_path / "whole", [1, 2])
    files = [path for path in (tmp_path / "whole" / "2").rglob("*") if path.is_file()]
    fell_back = 0
    for i, file in enumerate(path for path in files if path.stat().st_size):
        copy = tmp_path / str(i)
        shutil.copytree(tmp_path / "whole", copy)
        damage(copy / file.relative_to(tmp_path / "whole"), how)
        caplog.clear()
        checkpoints = Checkpoints(copy)
        step, state, data_state = checkpoints.restore(make_state(0))
        # Some files are copies or notes that reading does not need: then nothing is wrong.
        assert_same(state, make_state(step))
        assert data_state == {"position": step}
        if step == 1:
            fell_back += 1
            assert "checkpoint 2 is broken" in caplog.text
            assert "going on from checkpoint 1" in caplog.text
            # The run goes on, and the steps that were lost can be saved again.
            checkpoints.save(2, make_state(2), {"position": 2})
            assert checkpoints.restore(make_state(0))[0] == 2
            assert len([name for name in step_names(copy) if name.startswith("broken-2-")]) == 1
        checkpoints.close()
    assert fell_back >= 3  # the arrays, their index, the manifest


def test_all_broken_is_an_error_and_removes_nothing(tmp_path):
    save_steps(tmp_path, [1, 2])
    for step in ("1", "2"):
        for path in (tmp_path / step / "state" / "d").iterdir():
            damage(path, "truncated")
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(InputError, match=r"all checkpoints in .* are broken"):
        checkpoints.restore(make_state(0))
    assert step_names(tmp_path) == ["1", "2"]
    checkpoints.close()
    with pytest.raises(InputError, match=r"checkpoint .*2 is broken"):
        restore_raw(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda state: make_state(0, width=5),
            r"params/conv/bias is bfloat16\[4\] in the checkpoint and bfloat16\[5\] in this run",
        ),
        (
            lambda state: state.replace(step=jnp.float32(0)),
            r"step is int32\[\] in the checkpoint and float32\[\] in this run",
        ),
        (
            lambda state: state.replace(params=state.params | {"fc": jnp.zeros(2)}),
            r"params/fc is absent in the checkpoint and float32\[2\] in this run",
        ),
        (
            lambda state: state.replace(opt_state=()),
            r"opt_state/1/0/count is int32\[\] in the checkpoint and absent in this run",
        ),
    ],
)
def test_another_network_is_an_error_and_no_fallback(tmp_path, change, sentence):
    save_steps(tmp_path, [1, 2])
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(InputError, match=sentence):
        checkpoints.restore(change(make_state(0)))
    assert step_names(tmp_path) == ["1", "2"]
    checkpoints.close()


def test_saved_on_four_devices_restored_on_one_and_back(tmp_path):
    four, one = mesh_lib.make(4), mesh_lib.make(1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, mesh_lib.replicate(make_state(1), four), {})
    _, state, _ = checkpoints.restore(mesh_lib.replicate(make_state(0), one))
    assert_same(state, make_state(1))
    assert state.params["dense"]["kernel"].sharding == mesh_lib.replicated(one)
    checkpoints.save(2, state, {})
    _, state, _ = checkpoints.restore(mesh_lib.replicate(make_state(0), four))
    assert state.params["dense"]["kernel"].sharding == mesh_lib.replicated(four)
    assert state.typed_key.sharding == mesh_lib.replicated(four)
    assert_same(state, make_state(1))
    checkpoints.close()


def test_a_process_with_one_device_reads_what_four_devices_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = mesh_lib.replicate({"w": jnp.arange(4.0), "n": jnp.int32(5)}, mesh_lib.make(4))
    checkpoints.save(1, state, {})
    checkpoints.close()
    code = f"""
        import jax, jax.numpy as jnp
        from ssl_jax.runtime.checkpoints import Checkpoints
        assert jax.device_count() == 1
        template = {{"w": jnp.zeros(4), "n": jnp.int32(0)}}
        step, state, _ = Checkpoints({str(tmp_path)!r}).restore(template)
        print(step, state["w"].tolist(), int(state["n"]))
    """
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1 [0.0, 1.0, 2.0, 3.0] 5\n"
    assert done.stderr == ""


def test_restore_raw_needs_no_template(tmp_path):
    save_steps(tmp_path, [1, 2, 3])
    raw = restore_raw(tmp_path)
    state = make_state(3)
    kernel = raw["params"]["conv"]["kernel"]
    assert isinstance(kernel, np.ndarray)
    np.testing.assert_array_equal(kernel, state.params["conv"]["kernel"])
    assert raw["params"]["conv"]["bias"].dtype == jnp.bfloat16
    assert raw["opt_state"]["1"]["0"]["count"] == 0
    assert raw["empty"].shape == (0, 3)
    np.testing.assert_array_equal(raw["typed_key"], jax.random.key_data(state.typed_key))
    assert restore_raw(tmp_path, 2)["step"] == 2
    with pytest.raises(InputError, match=r"no checkpoint 1 in .*; there are: \[2, 3\]"):
        restore_raw(tmp_path, 1)
    with pytest.raises(InputError, match="there is no checkpoint in"):
        restore_raw(tmp_path / "elsewhere")


def test_kill_while_saving_leaves_whole_checkpoints(tmp_path):
    code = f"""
        import jax.numpy as jnp
        from ssl_jax.runtime.checkpoints import Checkpoints
        checkpoints = Checkpoints({str(tmp_path)!r}, keep=3)
        for step in range(1, 1000):
            checkpoints.save(step, {{"w": jnp.full(300_000, step, jnp.float32)}}, {{"step": step}})
            print(step, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == 6:
                time.sleep(np.random.default_rng().uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
    checkpoints = Checkpoints(tmp_path, keep=3)
    step, state, data_state = checkpoints.restore({"w": jnp.zeros(300_000)})
    assert step >= 5  # the save before the last one had been waited for
    assert data_state == {"step": step}
    np.testing.assert_array_equal(state["w"], np.full(300_000, step, np.float32))
    assert all(name.isdigit() for name in step_names(tmp_path))  # what was half there is gone
    checkpoints.close()


def test_full_disk_is_a_sentence_and_earlier_checkpoints_are_intact(tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("a small file system of our own cannot be mounted here")
    code = """
        import sys
        import jax.numpy as jnp, numpy as np
        from ssl_jax.runtime.checkpoints import Checkpoints
        from ssl_jax.runtime.errors import InputError
        state = lambda step: {"w": np.random.default_rng(step).random(100_000)}
        checkpoints = Checkpoints(sys.argv[1] + "/checkpoints", keep=9)
        try:
            for step in range(1, 9):
                checkpoints.save(step, state(step), {})
        except InputError as error:
            print(error)
        checkpoints.close()
        step, restored, _ = Checkpoints(sys.argv[1] + "/checkpoints").restore(state(0))
        print(step, np.array_equal(restored["w"], state(step)["w"]))
    """
    mount = 'mount -t tmpfs -o size=2m tmpfs "$2" && exec "$0" -c "$1" "$2"'
    command = ["unshare", "-rm", "sh", "-c", mount, sys.executable, textwrap.dedent(code)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    sentence, result = done.stdout.splitlines()
    assert "no disk space for checkpoint" in sentence
    assert "are intact" in sentence
    step, same = result.split()
    assert int(step) >= 1
    assert same == "True"
    assert done.stderr == ""


def test_a_disk_that_became_read_only_is_a_sentence_and_can_still_be_read(tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("a small file system of our own cannot be mounted here")
    code = """
        import subprocess, sys
        import jax.numpy as jnp
        from ssl_jax.runtime.checkpoints import Checkpoints, restore_raw
        from ssl_jax.runtime.errors import InputError
        from ssl_jax.runtime.lock import workdir_lock

        place = sys.argv[1] + "/checkpoints"
        checkpoints = Checkpoints(place)
        checkpoints.save(1, {"w": jnp.float32(1)}, {})
        checkpoints.wait()
        subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
        try:
            checkpoints.save(2, {"w": jnp.float32(2)}, {})
            checkpoints.wait()
        except InputError as error:
            print(error)
        print(Checkpoints(place).restore({"w": jnp.float32(0)})[1]["w"], restore_raw(place)["w"])
        try:
            with workdir_lock(sys.argv[1]):
                pass
        except InputError as error:
            print(error)
    """
    mount = 'mount -t tmpfs -o size=2m tmpfs "$2" && exec "$0" -c "$1" "$2"'
    command = ["unshare", "-rm", "sh", "-c", mount, sys.executable, textwrap.dedent(code)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert done.stderr == ""
    sentence, values, refusal = done.stdout.splitlines()
    assert sentence.startswith(f"checkpoint 2 cannot be written in {tmp_path}/checkpoints (")
    assert sentence.endswith("the checkpoints of steps [1] are intact, so correct that and run this again")
    assert values == "1.0 1.0"
    assert refusal == f"work directory {tmp_path} cannot be used: Read-only file system: '{tmp_path}/.lock'"


def test_words_of_a_full_disk_are_recognised(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.zeros(3)}, {})
    checkpoints.wait()

    def fail(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(InputError, match=r"no disk space for checkpoint 2 .* steps \[1\] are"):
        checkpoints.save(2, {"w": jnp.zeros(3)}, {})
    monkeypatch.undo()
    assert checkpoints.restore({"w": jnp.ones(3)})[0] == 1
    checkpoints.close()
