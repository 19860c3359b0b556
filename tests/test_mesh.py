"""One mesh over all devices: what is split, what is replicated, and a cache of programs."""

import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime.checkpoints import Checkpoints
from ssl_jax.runtime.errors import InputError


def test_mesh_is_one_axis_over_all_devices():
    mesh = mesh_lib.make()
    assert dict(mesh.shape) == {"data": 4}
    assert list(mesh.devices) == jax.devices()
    assert dict(mesh_lib.make(1).shape) == {"data": 1}


@pytest.mark.parametrize("count", [0, 5, -1])
def test_devices_that_are_not_there(count):
    with pytest.raises(InputError, match=f"{count} devices were asked for, but there are 4"):
        mesh_lib.make(count)


def test_batch_is_split_in_order():
    mesh = mesh_lib.make()
    batch = {
        "image": np.arange(8 * 2 * 2 * 3, dtype=np.uint8).reshape(8, 2, 2, 3),
        "label": np.arange(8),
    }
    placed = mesh_lib.shard_batch(batch, mesh)
    assert placed["image"].dtype == jnp.uint8
    assert placed["image"].sharding.spec == PartitionSpec("data")
    for name, array in batch.items():
        np.testing.assert_array_equal(np.asarray(placed[name]), array)
    rows = {s.device: np.asarray(s.data).tolist() for s in placed["label"].addressable_shards}
    assert rows == {d: [2 * i, 2 * i + 1] for i, d in enumerate(jax.devices())}


def test_batch_that_cannot_be_divided():
    with pytest.raises(InputError) as caught:
        mesh_lib.shard_batch({"image": np.zeros((6, 2))}, mesh_lib.make())
    assert "a batch of 6 (image) cannot be divided among 4 devices" in str(caught.value)
    mesh_lib.shard_batch({"image": np.zeros((6, 2))}, mesh_lib.make(3))


def test_replicated_state_is_whole_on_every_device():
    mesh = mesh_lib.make()
    state = mesh_lib.replicate({"w": np.arange(3.0), "key": jax.random.key(0)}, mesh)
    assert state["w"].sharding.is_fully_replicated
    assert [shard.data.tolist() for shard in state["w"].addressable_shards] == [[0, 1, 2]] * 4
    assert len(state["key"].sharding.device_set) == 4


def test_a_jitted_mean_over_a_split_batch_is_the_mean_of_all():
    mesh = mesh_lib.make()
    x = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)

    @jax.jit
    def loss(w, batch):
        return jnp.mean((batch["x"] @ w) ** 2)

    w = mesh_lib.replicate(np.ones(5, np.float32), mesh)
    gradient = jax.grad(loss)(w, mesh_lib.shard_batch({"x": x}, mesh))
    alone = jax.grad(loss)(jnp.ones(5), {"x": x})
    np.testing.assert_allclose(gradient, alone, rtol=1e-5)
    assert gradient.sharding.is_fully_replicated


def train(layout: mesh_lib.Layout, mesh) -> tuple:
    """Three updates of a small network by AdamW, as an experiment makes them; (state, losses)."""
    optimizer = optax.adamw(1e-2)
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "up": {"kernel": jax.random.normal(keys[0], (64, 512)) / 8, "bias": jnp.zeros(512)},
        "down": {"kernel": jax.random.normal(keys[1], (512, 33)) / 20, "bias": jnp.zeros(33)},
    }
    state = mesh_lib.place((params, optimizer.init(params), keys[2]), mesh, layout)
    batch = mesh_lib.shard_batch({"x": np.asarray(jax.random.normal(keys[3], (16, 64)))}, mesh)

    def loss(params, x):
        hidden = jax.nn.relu(x @ params["up"]["kernel"] + params["up"]["bias"][None])
        return jnp.mean((hidden @ params["down"]["kernel"] + params["down"]["bias"][None] - 1) ** 2)

    def step(state, batch):
        params, opt_state, key = state
        value, gradient = jax.value_and_grad(loss)(params, batch["x"])
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, key), value

    shardings = (mesh_lib.state_sharding(state, mesh, layout), mesh_lib.replicated(mesh))
    update = jax.jit(step, donate_argnums=0, out_shardings=shardings)
    losses = []
    for _ in range(3):
        state, value = update(state, batch)
        losses.append(float(value))
    return state, losses


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_an_update_of_a_sharded_state_is_that_of_a_replicated_one(num_devices):
    mesh = mesh_lib.make(num_devices)
    whole, whole_losses = train(mesh_lib.Layout(), mesh)
    parts, losses = train(mesh_lib.Layout(fsdp=True), mesh)
    np.testing.assert_allclose(losses, whole_losses, rtol=1e-5)
    assert losses[2] < losses[0]
    for a, b in zip(jax.tree.leaves(parts[:2]), jax.tree.leaves(whole[:2]), strict=True):
        # Adam divides by the gradient's own size, which blows up the rounding of the smallest.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))
    (params, opt_state, _), (adam, *_) = parts, parts[1]
    # After the updates each device still holds its part, of the parameters and of both moments.
    for tree in (params, adam.mu, adam.nu):
        assert tree["up"]["kernel"].sharding.spec == PartitionSpec(None, "data")
        assert tree["down"]["kernel"].sharding.spec == PartitionSpec("data")
        for name, shape in {"up": (64, 512 // num_devices), "down": (512 // num_devices, 33)}.items():
            assert {s.data.shape for s in tree[name]["kernel"].addressable_shards} == {shape}
        assert tree["up"]["bias"].sharding.is_fully_replicated
    assert opt_state[0].count.sharding.is_fully_replicated
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(whole))


def test_what_no_axis_divides_is_replicated():
    mesh = mesh_lib.make(4)
    shapes = {"odd": (333, 99), "small": (4, 4), "scalar": (), "even": (3, 3, 64, 128)}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    found = mesh_lib.state_sharding(tree, mesh, mesh_lib.Layout(fsdp=True))
    assert {name: sharding.spec for name, sharding in found.items()} == {
        "odd": PartitionSpec(),
        "small": PartitionSpec(),
        "scalar": PartitionSpec(),
        "even": PartitionSpec(None, None, None, "data"),
    }


def test_a_sharded_state_survives_a_checkpoint_onto_another_number_of_devices(tmp_path):
    state = {"w": jnp.arange(2.0**15).reshape(256, 128), "key": jax.random.key(3)}
    layout = mesh_lib.Layout(fsdp=True)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, mesh_lib.place(state, mesh_lib.make(4), layout), {})
    for num_devices in (1, 2, 4):
        mesh = mesh_lib.make(num_devices)
        template = mesh_lib.place({"w": jnp.zeros((256, 128)), "key": jax.random.key(0)}, mesh, layout)
        _, restored, _ = checkpoints.restore(template)
        np.testing.assert_array_equal(restored["w"], state["w"])
        assert restored["w"].sharding == template["w"].sharding
        assert (jax.random.key_data(restored["key"]) == jax.random.key_data(state["key"])).all()
    checkpoints.close()


@pytest.mark.skipif(mesh_lib._is_intel_cpu(), reason="XLA has no working cache on Intel CPUs")
def test_compiled_programs_are_found_again_and_give_the_same_bits(tmp_path):
    code = """
import jax, jax.numpy as jnp, numpy as np
from ssl_jax.runtime import mesh
print(mesh.setup_compilation_cache())
# All programs, or a slow machine would keep more of them than a fast one.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
step = jax.jit(lambda w, x: w - jax.grad(lambda w: jnp.tanh(jnp.tanh(x @ w) @ w).var())(w))
w = jax.random.normal(jax.random.PRNGKey(0), (64, 64))
for i in range(3):
    w = step(w, jax.random.normal(jax.random.PRNGKey(i), (32, 64)))
print(np.asarray(w).tobytes().hex())
"""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}

    def run():
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout, {path.name for path in (tmp_path / "xla").iterdir()}

    first, programs = run()
    assert first.splitlines()[0] == str(tmp_path / "xla")
    assert any(name.startswith("jit") for name in programs)
    second, programs_after = run()
    assert second == first
    assert programs_after == programs


def test_no_cache_where_it_cannot_be_written_or_read(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    before = jax.config.jax_compilation_cache_dir
    assert mesh_lib.setup_compilation_cache(tmp_path / "file" / "xla") is None
    monkeypatch.setattr(mesh_lib, "_is_intel_cpu", lambda: True)
    assert mesh_lib.setup_compilation_cache(tmp_path / "xla") is None
    assert jax.config.jax_compilation_cache_dir == before


def test_free_memory_of_the_cpu_is_some_but_not_all_there_is():
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < mesh_lib.free_bytes(jax.devices()[0]) < physical


def test_free_memory_in_a_container_is_what_its_limit_leaves(tmp_path, monkeypatch):
    device = jax.devices()[0]
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable:    5000 kB\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 700000\n")
    places = {"/proc/meminfo": tmp_path / "meminfo", "/sys/fs/cgroup": tmp_path}
    monkeypatch.setattr(mesh_lib, "Path", lambda path: places.get(path, Path(path)))
    assert mesh_lib.free_bytes(device) == 5000 * 1024  # there is no limit
    (tmp_path / "memory.max").write_text("max\n")
    assert mesh_lib.free_bytes(device) == 5000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    assert mesh_lib.free_bytes(device) == 2_000_000
    (tmp_path / "meminfo").unlink()
    assert mesh_lib.free_bytes(device) == 2_000_000
    (tmp_path / "memory.stat").unlink()
    assert mesh_lib.free_bytes(device) is None


def test_free_memory_of_an_accelerator_is_its_own():
    def device(stats):
        return types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)

    assert mesh_lib.free_bytes(device({"bytes_limit": 100, "bytes_in_use": 30})) == 70
    assert mesh_lib.free_bytes(device({"bytes_limit": 100})) == 100
    assert mesh_lib.free_bytes(device({})) is None
    assert mesh_lib.free_bytes(device(None)) is None
