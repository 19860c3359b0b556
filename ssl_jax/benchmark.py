"""How fast a config runs on this machine, part by part.

python -m ssl_jax.benchmark --config=configs/jigsaw_rl.py
python -m ssl_jax.benchmark --config=configs/jigsaw_rl.py:paper --config.train.batch_size=32 --only=step
python -m ssl_jax.benchmark --config=configs/jigsaw_rl.py --json=benchmark.json

Everything is measured on the config's own sizes. The step and the player are given random pictures, so
that they can be measured without the data set; rates are medians over `--seconds` of each part.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from absl import flags
from ml_collections import config_flags

from ssl_jax.experiments import pretrain
from ssl_jax.pretext import permutations
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.errors import InputError

Row = tuple[str, float, str]

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config to measure.")
_ONLY = flags.DEFINE_list("only", [], "Parts to measure, all by default.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "How long each rate is measured, in seconds.")
_JSON = flags.DEFINE_string("json", None, "Where to write the numbers as JSON, besides the table.")


def timed(function: Callable[[], Any], seconds: float, least: int = 3) -> float:
    """Median seconds of a call, over calls for this long and at least `least`, after a warm-up."""
    jax.block_until_ready(function())
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < least:
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def product_flops(jaxpr: jax.extend.core.Jaxpr) -> int:
    """Floating-point operations of the matrix products and convolutions of a program, in all its loops.

    XLA's own count takes a loop's body once, and the fast forms for CPUs are loops.
    """
    total = 0
    for equation in jaxpr.eqns:
        params, name = equation.params, equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * depth
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            zeros = math.prod(params["lhs_dilation"])  # between the pixels, in the gradient of a stride
            total += 2 * equation.outvars[0].aval.size * kernel.size // features // zeros
        times = params["length"] if name == "scan" else 1
        parts = (getattr(part, "jaxpr", part) for part in jax.tree.leaves(list(params.values())))
        total += times * sum(product_flops(part) for part in parts if hasattr(part, "eqns"))
    return total


def random_images(setup: pretrain.Setup, batch_size: int) -> np.ndarray:
    """Pictures uint8 [batch_size, H, W, 3] of noise."""
    shape = (batch_size, *setup.data.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


class Bench:
    """The compiled pieces of one config, shared by the measurements."""

    def __init__(self, setup: pretrain.Setup, seconds: float):
        self.setup, self.seconds = setup, seconds
        self.mesh = mesh_lib.make()
        key = jax.random.PRNGKey(setup.seed)
        self.state = mesh_lib.replicate(pretrain.create_state(setup, key), self.mesh)
        images = random_images(setup, setup.train.batch_size)
        self.batch = mesh_lib.shard_batch({"image": images}, self.mesh)

    @functools.cached_property
    def matrix_rate(self) -> float:
        """Floating-point operations a second of a float32 matrix product [2048, 2048], all devices."""
        matrix = jnp.ones((2048, 2048))
        product = jax.jit(lambda a, b: a @ b)
        per_call = timed(lambda: product(matrix, matrix), min(self.seconds, 2.0))
        return 2 * 2048**3 / per_call * jax.device_count()

    @functools.cached_property
    def step(self) -> Any:
        """The compiled training step."""
        step = jax.jit(functools.partial(pretrain.train_step, self.setup), donate_argnums=0)
        return step.lower(self.state, self.batch).compile()

    @functools.cached_property
    def step_seconds(self) -> float:
        """Seconds of a training step whose batch is already on the device."""

        def once():
            self.state, metrics = self.step(self.state, self.batch)
            return metrics

        return timed(once, self.seconds)

    def skill_seconds(self, setup: pretrain.Setup, state, skill: pretrain.Skill, observe) -> float:
        """Seconds to measure skill on the whole slice, and to show it to the player if asked."""
        images = random_images(setup, skill.batch_size)
        mask = np.ones(len(images), bool)
        batch = mesh_lib.shard_batch({"image": images, "mask": mask}, self.mesh)
        batches = [batch] * -(-skill.images // len(images))
        meter = pretrain.SkillMeter(setup, skill, batches)
        look = jax.jit(functools.partial(pretrain.observe, setup))
        return timed(lambda: look(state, meter(state)) if observe else meter(state), self.seconds)


def measure_machine(bench: Bench) -> Iterator[Row]:
    """What the machine can do at best."""
    yield "machine/float32_matrix_rate", bench.matrix_rate / 1e9, "GFLOP/s"


def measure_step(bench: Bench) -> Iterator[Row]:
    """The training step alone."""
    size = bench.setup.train.batch_size
    start = time.perf_counter()
    _ = bench.step
    yield "step/compile", time.perf_counter() - start, "s"
    yield "step/time", bench.step_seconds, "s"
    yield "step/rate", size / bench.step_seconds, "images/s"
    program = jax.make_jaxpr(functools.partial(pretrain.train_step, bench.setup))(bench.state, bench.batch)
    flops = product_flops(program.jaxpr)
    yield "step/flops_per_image", flops / size / 1e9, "GFLOP"
    share = flops / bench.step_seconds / bench.matrix_rate
    yield "step/share_of_matrix_rate", 100 * share, "%"


def measure_data(bench: Bench) -> Iterator[Row]:
    """The host pipeline alone, and how long a step waits for it when they overlap."""
    setup = bench.setup
    batches = pretrain.open_batches(setup, pretrain.open_data(setup))
    size = setup.train.batch_size
    yield "data/rate", size / timed(lambda: next(batches)["image"], bench.seconds), "images/s"
    step, waiting, start, steps = bench.step, 0.0, time.perf_counter(), 0
    while time.perf_counter() - start < bench.seconds or steps < 3:
        before = time.perf_counter()
        images = next(batches)["image"]
        waiting += time.perf_counter() - before
        bench.state, metrics = step(bench.state, mesh_lib.shard_batch({"image": images}, bench.mesh))
        jax.block_until_ready(metrics)
        steps += 1
    elapsed = time.perf_counter() - start
    batches.close()
    yield "data/rate_with_step", steps * size / elapsed, "images/s"
    yield "data/wait_share", 100 * waiting / elapsed, "%"


def measure_selection(bench: Bench) -> Iterator[Row]:
    """What the player costs: one look at the network in `period` steps."""
    setup = bench.setup
    if not setup.player.period:
        yield "selection/share_of_training", 0.0, "%"
        return
    seconds = bench.skill_seconds(setup, bench.state, setup.selection_slice, observe=True)
    yield "selection/look", seconds, "s"
    share = seconds / (setup.player.period * bench.step_seconds)
    yield "selection/share_of_training", 100 * share, "%"


def measure_permutations(bench: Bench) -> Iterator[Row]:
    """Skill at 1000 permutations instead of 10, with the same 1000-way network."""
    length = bench.setup.task.num_tiles
    orders = permutations.make(num=1000, length=length)
    network = bench.setup.network
    network = network.clone(head=network.head.clone(num_classes=len(orders)))
    times = {}
    for number, each in ((10, None), (1000, 100), (1000, None)):
        setup = dataclasses.replace(bench.setup, network=network, permutations=orders)
        state = mesh_lib.replicate(pretrain.create_state(setup, jax.random.PRNGKey(setup.seed)), bench.mesh)
        setup = dataclasses.replace(setup, permutations=orders[:number])
        skill = dataclasses.replace(setup.selection_slice, permutations_per_image=each)
        times[number, each] = bench.skill_seconds(setup, state, skill, observe=False)
        answers = "all" if each is None else f"{each} an image"
        yield f"permutations/{number}, {answers}", times[number, each], "s"
    yield "permutations/1000 over 10, 100 an image", times[1000, 100] / times[10, None], "x"
    yield "permutations/1000 over 10, all", times[1000, None] / times[10, None], "x"


MEASUREMENTS = {
    "machine": measure_machine,
    "step": measure_step,
    "data": measure_data,
    "selection": measure_selection,
    "permutations": measure_permutations,
}


def main(argv: list[str]) -> None:
    """Measures the parts asked for and prints them as they come."""
    del argv
    if _CONFIG.value is None:
        raise InputError(f"give a config by --config=FILE: {', '.join(config_lib.list_configs())}")
    for part in _ONLY.value:
        config_lib.check_known("part", part, MEASUREMENTS)
    setup = pretrain.setup_from_config(_CONFIG.value)
    mesh_lib.setup_compilation_cache()
    bench = Bench(setup, _SECONDS.value)
    console = rich.console.Console()
    console.print(f"{metrics_lib.device_description()}, JAX {jax.__version__}")
    rows = {}
    for part in _ONLY.value or MEASUREMENTS:
        try:
            for name, value, unit in MEASUREMENTS[part](bench):
                rows[name] = {"value": value, "unit": unit}
                console.print(f"{name:42} {value:10.4g} {unit}")
        except InputError as error:
            console.print(f"{part}: left out, {error}")
    if _JSON.value:
        result = {
            "config": _CONFIG.value.to_dict(),
            "device": metrics_lib.device_description(),
            "versions": metrics_lib.versions(),
            "rows": rows,
        }
        metrics_lib.write_json(_JSON.value, result)


if __name__ == "__main__":
    config_lib.run_app(main)
