"""How fast a config runs on this machine, part by part.

python -m ssl_jax.benchmark --config=configs/jigsaw_rl.py
python -m ssl_jax.benchmark --config=configs/jigsaw_rl.py:paper --config.train.batch_size=32 --only=step
python -m ssl_jax.benchmark --config=configs/jigsaw_rl.py --json=benchmark.json
python -m ssl_jax.benchmark --config=configs/jigsaw_rl.py --only=data --config.data.name=folder \\
    --config.data.path=PICTURES
python -m ssl_jax.benchmark --config=configs/dueling_dqn.py:game=Pong,aux=sequence
python -m ssl_jax.benchmark --config=configs/dueling_dqn.py:paper --only=environment,loop
python -m ssl_jax.benchmark --config=configs/deepfake.py:model=resnet50

Which parts there are depends on the config's experiment. Everything is measured on the config's own sizes,
but for the replay memory (see `DQNBench`). The network and the player are given random pictures, so that
they can be measured without the data set. Times are medians over `--seconds` of each part, rates follow from
them; only those of the environments and of whole loops are means, for the ends of episodes count as well.
"""

import dataclasses
import functools
import io
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from absl import flags
from ml_collections import config_flags
from PIL import Image

from ssl_jax.atari.environments import TimeStep
from ssl_jax.atari.replay import ReplayState, Transitions
from ssl_jax.data import clips, pipeline, videos
from ssl_jax.data.sources import Source
from ssl_jax.experiments import deepfake, dueling_dqn, pretrain, training
from ssl_jax.experiments.tasks import SkillMeter, Task
from ssl_jax.networks import layers
from ssl_jax.pretext import permutations
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime import paths
from ssl_jax.runtime.errors import InputError

Row = tuple[str, float, str]
SAMPLE = 64  # pictures whose reading and decoding is timed
MOST_REMEMBERED = 20_000  # transitions of an agent: a memory that is filled within a second or two

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config to measure.")
_ONLY = flags.DEFINE_list("only", [], "Parts to measure, all by default.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "How long each rate is measured, in seconds.", lower_bound=0.0)
_JSON = paths.define_flag("json", None, "Where to write the numbers as JSON, besides the table.")


def timed(
    function: Callable[[], Any], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median seconds, by a clock, of a call: of calls for `seconds` and at least three, after a warm-up."""
    jax.block_until_ready(function())
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = clock()
        jax.block_until_ready(function())
        times.append(clock() - start)
    return statistics.median(times)


@functools.cache
def matrix_rate(seconds: float) -> float:
    """Floating-point operations a second of a float32 matrix product [2048, 2048], on one device."""
    matrix = jnp.ones((2048, 2048))
    product = jax.jit(lambda a, b: a @ b)
    return 2 * 2048**3 / timed(lambda: product(matrix, matrix), min(seconds, 2.0))


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


def measure_machine(bench: "PretrainBench | DQNBench | DeepfakeBench") -> Iterator[Row]:
    """What the machine can do at best, on all its devices."""
    yield "machine/float32_matrix_rate", matrix_rate(bench.seconds) * jax.device_count() / 1e9, "GFLOP/s"


# --- Pre-training


def random_pictures(setup: pretrain.Setup, task: Task, batch_size: int) -> np.ndarray:
    """Pictures uint8 [batch_size, H, W, 3], or clips [batch_size, u, H, W, 3], of noise."""
    frames = (task.puzzle.num_parts,) if task.pictures == "clip" else ()
    shape = (batch_size, *frames, *setup.data.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


class PretrainBench:
    """The compiled pieces of one config, shared by the measurements."""

    def __init__(self, setup: pretrain.Setup, seconds: float):
        self.setup, self.seconds = setup, seconds
        self.mesh = mesh_lib.make()
        key = jax.random.PRNGKey(setup.seed)
        self.state = mesh_lib.replicate(pretrain.create_state(setup, key), self.mesh)
        size = setup.train.batch_size
        pictures = {task.pictures: random_pictures(setup, task, size) for task in setup.tasks}
        self.batch = mesh_lib.shard_batch(pictures, self.mesh)

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

    def skill_meter(self, network, task: Task) -> SkillMeter:
        """Of a task, on a selection slice of noise."""
        skill = task.selection_slice
        pictures = random_pictures(self.setup, task, skill.batch_size)
        batch = mesh_lib.shard_batch(
            {task.pictures: pictures, "mask": np.ones(len(pictures), bool)}, self.mesh
        )
        batches = [batch] * -(-skill.examples // len(pictures))
        return SkillMeter(network, task, skill, batches, self.setup.seed)

    def look_seconds(self, tasks: Sequence[Task]) -> float:
        """Seconds to measure skill on the whole selection slices of tasks, and to show it to their player."""
        meters = [self.skill_meter(self.setup.network, task) for task in tasks]
        look = jax.jit(functools.partial(pretrain.observe, tasks))
        variables = training.variables_of(self.state)
        return timed(lambda: look(self.state, [meter(variables) for meter in meters]), self.seconds)


def measure_step(bench: PretrainBench) -> Iterator[Row]:
    """The training step alone."""
    size = bench.setup.train.batch_size
    start = time.perf_counter()
    _ = bench.step
    yield "step/compile", time.perf_counter() - start, "s"
    yield "step/time", bench.step_seconds, "s"
    yield "step/rate", size / bench.step_seconds, "examples/s"
    program = jax.make_jaxpr(functools.partial(pretrain.train_step, bench.setup))(bench.state, bench.batch)
    flops = product_flops(program.jaxpr)
    yield "step/flops_per_example", flops / size / 1e9, "GFLOP"
    share = flops / bench.step_seconds / matrix_rate(bench.seconds) / jax.device_count()
    yield "step/share_of_matrix_rate", 100 * share, "%"


def measure_data(bench: PretrainBench) -> Iterator[Row]:
    """The host's work, stage by stage on one core, and all of it as in training; by stream of batches.

    Of clips the stages are counted in frames. `read` fetches bytes; from videos, it decodes them as well.
    """
    setup = bench.setup
    data = pretrain.open_data(setup)
    fields = {"image": (), "clip": clips.FIELDS}
    for name, stream in pretrain.open_batches(setup, data).items():
        length = setup.cut.frames if name == "clip" else 1
        stages = time_stages(data.open("train", fields[name]), length, setup.data, bench.seconds)
        for stage, rate in stages.items():
            yield f"data/{name}/{stage}", rate, "pictures/s on a core"
        raw = stages["raw_decoder"]
        ours = stages["read"] if setup.data.name == "videos" else stages["decode"]
        yield f"data/{name}/share_of_raw_decoder", 100 * ours / raw, "%"
        yield from time_stream(bench, name, stream)


def time_stages(source: Source, length: int, data: pretrain.Data, seconds: float) -> dict[str, float]:
    """Pictures a second of one core: what reading them takes, a decoder that does no more, and ours.

    Args:
      source: a split.
      length: how many successive pictures are read at once.
      data: how they are cropped and scaled.
      seconds: how long each is measured.
    """
    starts = pipeline.spread(max(len(source) - length, 1), max(SAMPLE // length, 1))
    read = lambda: [[*source.read(range(start, start + length))] for start in starts]
    encoded = [example["image"] for run in read() for example in run]
    image_size, min_size = data.image_size, data.min_size or pipeline.half(data.image_size)
    stages = {
        "read": read,
        "raw_decoder": lambda: [Image.open(io.BytesIO(picture)).load() for picture in encoded],
        "decode": lambda: [pipeline.decode_image(picture, image_size, min_size) for picture in encoded],
    }
    rates = {name: len(encoded) / timed(stage, seconds, time.thread_time) for name, stage in stages.items()}
    if isinstance(source, videos.Frames):
        rates["raw_decoder"] = video_rate(source, seconds)
    return rates


def video_rate(source: videos.Frames, seconds: float) -> float:
    """Frames a second of a core on which FFmpeg decodes videos from their beginnings, to RGB."""
    frames, start = 0, time.thread_time()
    for video in itertools.cycle(source.videos):
        with videos.open_video(os.path.join(source.root, video.path)) as (container, stream):
            for frame in container.decode(stream):
                frame.to_ndarray(format="rgb24")
                frames += 1
                if time.thread_time() - start > seconds:
                    return frames / (time.thread_time() - start)
    return math.nan


def time_stream(bench: PretrainBench, name: str, stream: pipeline.TrainBatches) -> Iterator[Row]:
    """Batches as training reads them, and on their way to the devices."""
    size, last = bench.setup.train.batch_size, None
    for _ in range(bench.setup.data.prefetch + 1):  # what is ready already says nothing of the rate
        last = next(stream)
    start, cores, batches = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < bench.seconds or batches < 3:
        last = next(stream)
        batches += 1
    elapsed, cores = time.perf_counter() - start, time.process_time() - cores
    stream.close()
    yield f"data/{name}/rate", batches * size / elapsed, "examples/s"
    if not bench.setup.data.workers:  # the clock of this process does not run for others
        yield f"data/{name}/rate_per_core", batches * size / cores, "examples/s"
    place = lambda: mesh_lib.shard_batch({name: last[name]}, bench.mesh)
    yield f"data/{name}/to_device", size / timed(place, min(bench.seconds, 1.0)), "examples/s"


def measure_overlap(bench: PretrainBench) -> Iterator[Row]:
    """Reading and training at once, as in a run, and how long a step waits for its batch."""
    setup = bench.setup
    streams = pretrain.open_batches(setup, pretrain.open_data(setup))
    size = setup.train.batch_size
    read = lambda: {name: next(stream)[name] for name, stream in streams.items()}
    step, waiting, start, steps = bench.step, 0.0, time.perf_counter(), 0
    while time.perf_counter() - start < bench.seconds or steps < 3:
        before = time.perf_counter()
        pictures = read()
        waiting += time.perf_counter() - before
        bench.state, metrics = step(bench.state, mesh_lib.shard_batch(pictures, bench.mesh))
        jax.block_until_ready(metrics)
        steps += 1
    elapsed = time.perf_counter() - start
    for stream in streams.values():
        stream.close()
    yield "overlap/rate", steps * size / elapsed, "examples/s"
    yield "overlap/wait_share", 100 * waiting / elapsed, "%"


def measure_selection(bench: PretrainBench) -> Iterator[Row]:
    """What the players cost: one look at the network in `period` steps each."""
    share = 0.0
    for tasks in bench.setup.looks:
        seconds = bench.look_seconds(tasks)
        yield f"selection/{tasks[0].player_state}/look", seconds, "s"
        share += seconds / (tasks[0].player.period * bench.step_seconds)
    yield "selection/share_of_training", 100 * share, "%"


def measure_permutations(bench: PretrainBench) -> Iterator[Row]:
    """Skill at 1000 permutations instead of 10 of the jigsaw, with the same 1000-way network."""
    setup = bench.setup
    task = next((task for task in setup.tasks if task.name == "spatial"), None)
    if task is None:
        return
    orders = permutations.make(num=1000, length=task.puzzle.num_parts)
    task = dataclasses.replace(task, head=task.head.clone(num_classes=len(orders)))
    network = setup.network.clone(heads={task.name: task.head})
    setup = dataclasses.replace(setup, tasks=(task,), network=network)
    state = mesh_lib.replicate(pretrain.create_state(setup, jax.random.PRNGKey(setup.seed)), bench.mesh)
    variables, times = training.variables_of(state), {}
    for number, each in ((10, None), (1000, 100), (1000, None)):
        some = dataclasses.replace(
            task,
            orders=orders[:number],
            selection_slice=dataclasses.replace(task.selection_slice, classes_per_example=each),
        )
        meter = bench.skill_meter(network, some)
        times[number, each] = timed(functools.partial(meter, variables), bench.seconds)
        answers = "all" if each is None else f"{each} an image"
        yield f"permutations/{number}, {answers}", times[number, each], "s"
    yield "permutations/1000 over 10, 100 an image", times[1000, 100] / times[10, None], "x"
    yield "permutations/1000 over 10, all", times[1000, None] / times[10, None], "x"


# --- Dueling DQN


def filled_memory(setup: dueling_dqn.Setup) -> ReplayState:
    """Memories of all agents, full of one long episode of noise each."""
    replay, num = setup.replay, setup.play.num

    def fill(key):
        def add(i, state):
            frame_key, reward_key, action_key = jax.random.split(jax.random.fold_in(key, i), 3)
            return replay.add(
                state,
                frame=jax.random.bits(frame_key, (num, *replay.frame_size), jnp.uint8),
                first=jnp.full((num,), i == 0),
                r_t=jax.random.uniform(reward_key, (num,), minval=-1, maxval=1),
                discount_t=jnp.ones((num,)),
                action=jax.random.randint(action_key, (num,), 0, setup.network.num_actions),
            )

        return jax.lax.fori_loop(0, replay.rows, add, replay.init())

    place = jax.sharding.SingleDeviceSharding(dueling_dqn.memory_device(setup))
    keys = dueling_dqn.agent_keys(setup, jax.random.PRNGKey(0))
    return jax.jit(setup.over_agents(fill), out_shardings=place)(keys)


class DQNBench:
    """Agents at their first update, with full memories, shared by the measurements.

    A memory has the config's capacity, but at most `MOST_REMEMBERED` transitions, for it is filled before
    anything is measured: draws from a larger one take somewhat longer, with more blocks to sum and fewer
    rows in the caches. Agent steps and updates are those of all `num_seeds` agents together.
    """

    def __init__(self, setup: dueling_dqn.Setup, seconds: float):
        capacity = min(setup.replay.capacity, MOST_REMEMBERED)
        setup = dataclasses.replace(setup, replay=dataclasses.replace(setup.replay, capacity=capacity))
        self.setup, self.seconds = setup, seconds
        self.num_envs = setup.num_seeds * setup.play.num
        self.num_updates = setup.num_seeds * setup.updates_per_step  # of a vector step that has any
        state = dueling_dqn.create_state(setup, jax.random.PRNGKey(setup.seed))
        first_update = jnp.asarray(-(-setup.exploration.random_steps // setup.play.num), jnp.int32)
        self.state = state.replace(step=first_update, replay=filled_memory(setup))
        self.keys = dueling_dqn.agent_keys(setup, state.key)

    def open_environments(self):
        """The environments of training."""
        return dueling_dqn.open_environments(self.setup, dueling_dqn.TRAINING, 0, self.setup.play.num)

    @functools.cached_property
    def time_step(self) -> TimeStep:
        """The second one of the environments, as they lay it out."""
        environments = self.open_environments()
        environments.reset()
        time_step = environments.step(np.zeros(self.num_envs))
        environments.close()
        return time_step

    @functools.cached_property
    def environment_rate(self) -> float:
        """Agent steps a second of the environments alone, under random actions."""
        environments, random = self.open_environments(), np.random.default_rng(0)
        environments.reset()
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < self.seconds or steps < 3:
            environments.send(random.integers(environments.num_actions, size=self.num_envs))
            environments.recv()
            steps += 1
        rate = steps * self.num_envs / (time.perf_counter() - start)
        environments.close()
        return rate

    @functools.cached_property
    def draw(self) -> Callable[[], Transitions]:
        """Adds a row that comes from the host to the memory, and draws the batches of a vector step."""
        setup = self.setup
        row = dueling_dqn.make_row(setup, self.time_step, np.zeros(self.num_envs))
        function = functools.partial(dueling_dqn.remember, setup, setup.updates_per_step)
        remember = jax.jit(setup.over_agents(function, (None, 0, 0, 0)), donate_argnums=2)
        keys = jax.device_put(self.keys, dueling_dqn.memory_device(setup))
        step = np.int32(self.state.step)

        def draw():
            replay, batches = remember(step, keys, self.state.replay, row)
            self.state = self.state.replace(replay=replay)
            return batches

        return draw

    @functools.cached_property
    def batches(self) -> Transitions:
        """Those of a vector step, with the network, for updates that learn from the same ones always."""
        return jax.device_put(self.draw(), jax.devices()[0])

    @property
    def improve_inputs(self) -> tuple:
        """Arguments of `improve`, of which number 3 is donated in the loop."""
        state = self.state
        return state.step, state.updates, self.keys, state.agent, self.batches

    def improve(self, *inputs) -> tuple:
        """`dueling_dqn.improve` of all agents: the updates of a vector step."""
        function = functools.partial(dueling_dqn.improve, self.setup)
        return self.setup.over_agents(function, (None, None, 0, 0, 0))(*inputs)

    @functools.cached_property
    def update_flops(self) -> float:
        """Floating-point operations of the products of an update, and of the auxiliary task's beside it."""
        return product_flops(jax.make_jaxpr(self.improve)(*self.improve_inputs).jaxpr) / self.num_updates

    def loop(self) -> tuple[int, float, metrics_lib.Stopwatch]:
        """The loop of `dueling_dqn.train`, without what it does now and then.

        Returns:
          Vector steps, seconds, and in which calls the loop spent them.
        """
        setup, calls = self.setup, dueling_dqn.make_calls(self.setup)
        environments = self.open_environments()
        time_step, first = environments.reset(), int(self.state.step)

        def play(watch, step):
            nonlocal time_step
            self.state, time_step, _ = dueling_dqn.vector_step(
                setup, calls, watch, environments, self.state, time_step, first + step
            )

        period = 2 * setup.steps_between_updates
        for step in range(period):  # everything is compiled
            play(metrics_lib.Stopwatch(), step)
        first += period
        jax.block_until_ready(self.state)
        watch = metrics_lib.Stopwatch(compiled=("act", "learn", "remember"))
        start, step = time.perf_counter(), 0
        while time.perf_counter() - start < self.seconds or step < period:
            play(watch, step)
            step += 1
        jax.block_until_ready(self.state)
        seconds = time.perf_counter() - start
        environments.close()
        return step, seconds, watch


def measure_environment(bench: DQNBench) -> Iterator[Row]:
    """The environments alone: the limit of everything."""
    yield "environment/rate", bench.environment_rate, "agent steps/s"


def measure_acting(bench: DQNBench) -> Iterator[Row]:
    """The actions of a vector step, whose frame stacks come from the host and which return to it."""
    actor, s_t = dueling_dqn.make_actor(bench.setup), bench.time_step.s_t
    seconds = timed(lambda: np.asarray(actor(bench.state, s_t)), bench.seconds)
    yield "acting/time", seconds, "s"
    yield "acting/rate", bench.num_envs / seconds, "agent steps/s"


def measure_sampling(bench: DQNBench) -> Iterator[Row]:
    """The memory in a vector step with updates: one row in, batches out; see `DQNBench` for its size."""
    yield "sampling/time", timed(bench.draw, bench.seconds), "s"


def measure_learning(bench: DQNBench) -> Iterator[Row]:
    """The updates alone, as many in one call as a vector step has, on batches that are on the device."""
    start = time.perf_counter()
    improve = jax.jit(bench.improve, donate_argnums=3, compiler_options=layers.compiler_options())
    improve = improve.lower(*bench.improve_inputs).compile()
    yield "learning/compile", time.perf_counter() - start, "s"

    def once():
        agent, td_errors, _ = improve(*bench.improve_inputs)
        bench.state = bench.state.replace(agent=agent)
        return agent, td_errors

    seconds = timed(once, bench.seconds) / bench.num_updates
    yield "learning/time", seconds, "s"
    yield "learning/rate", 1 / seconds, "updates/s"
    yield "learning/flops_per_update", bench.update_flops / 1e9, "GFLOP"
    share = bench.update_flops / seconds / matrix_rate(bench.seconds)
    yield "learning/share_of_matrix_rate", 100 * share, "%"


def measure_loop(bench: DQNBench) -> Iterator[Row]:
    """Actor, environments and learner together.

    The loop waits for the actions of a step, which need the updates of the step before, and for the
    environments; the third share is what it takes to hand a row to the learner.
    """
    steps, seconds, watch = bench.loop()
    rate = steps * bench.num_envs / seconds
    yield "loop/rate", rate, "agent steps/s"
    yield "loop/updates", watch.blocks["learn"] * bench.num_updates / seconds, "updates/s"
    yield "loop/share_of_environment_rate", 100 * rate / bench.environment_rate, "%"
    handing = watch.seconds["learn"] + watch.seconds.get("remember", 0.0)
    yield "loop/acting_wait_share", 100 * watch.seconds["act"] / seconds, "%"
    yield "loop/learner_call_share", 100 * handing / seconds, "%"
    yield "loop/environment_wait_share", 100 * watch.seconds["environment"] / seconds, "%"


# --- DeepFake classification


class DeepfakeBench:
    """A classifier as its config has it, and a batch of noise on the device."""

    def __init__(self, setup: deepfake.Setup, seconds: float):
        self.setup, self.seconds = setup, seconds
        mesh = mesh_lib.make()
        state = deepfake.create_state(setup, jax.random.PRNGKey(setup.seed))
        self.state = mesh_lib.replicate(state, mesh)
        rng, size = np.random.default_rng(0), setup.train.batch_size
        images = rng.integers(0, 256, (size, setup.data.size, setup.data.size, 3), np.uint8)
        labels = rng.integers(0, 2, size, np.int32)
        self.batch = mesh_lib.shard_batch({"image": images, "label": labels}, mesh)

    def rows(
        self, part: str, function: Callable, *inputs: Any, donate: tuple[int, ...] = ()
    ) -> Iterator[Row]:
        """What a function of the state and others takes; the first of its results is the next state."""
        size = self.setup.train.batch_size
        start = time.perf_counter()
        compiled = jax.jit(function, donate_argnums=donate).lower(self.state, *inputs).compile()
        yield f"{part}/compile", time.perf_counter() - start, "s"
        flops = product_flops(jax.make_jaxpr(function)(self.state, *inputs).jaxpr)

        def once():
            state, result = compiled(self.state, *inputs)
            self.state = state if donate else self.state
            return result

        seconds = timed(once, self.seconds)
        yield f"{part}/time", seconds, "s"
        yield f"{part}/rate", size / seconds, "images/s"
        yield f"{part}/flops_per_image", flops / size / 1e9, "GFLOP"
        share = flops / seconds / matrix_rate(self.seconds) / jax.device_count()
        yield f"{part}/share_of_matrix_rate", 100 * share, "%"


def measure_training(bench: DeepfakeBench) -> Iterator[Row]:
    """The training step alone."""
    step = functools.partial(deepfake.train_step, bench.setup)
    yield from bench.rows("training", step, bench.batch, donate=(0,))


def measure_inference(bench: DeepfakeBench) -> Iterator[Row]:
    """Probabilities of stored frames."""
    setup = bench.setup

    def infer(state, images):
        return None, deepfake.probabilities(setup, training.variables_of(state), images)

    yield from bench.rows("inference", infer, bench.batch["image"])


# --- The door

PRETRAIN_PARTS = {
    "machine": measure_machine,
    "step": measure_step,
    "data": measure_data,
    "overlap": measure_overlap,
    "selection": measure_selection,
    "permutations": measure_permutations,
}
DQN_PARTS = {
    "machine": measure_machine,
    "environment": measure_environment,
    "acting": measure_acting,
    "sampling": measure_sampling,
    "learning": measure_learning,
    "loop": measure_loop,
}
DEEPFAKE_PARTS = {
    "machine": measure_machine,
    "training": measure_training,
    "inference": measure_inference,
}
EXPERIMENTS = {
    "pretrain": (pretrain.setup_from_config, PretrainBench, PRETRAIN_PARTS),
    "dueling_dqn": (dueling_dqn.setup_from_config, DQNBench, DQN_PARTS),
    "deepfake": (deepfake.setup_from_config, DeepfakeBench, DEEPFAKE_PARTS),
}


def main(argv: list[str]) -> None:
    """Measures the parts asked for and prints them as they come."""
    del argv
    config = _CONFIG.value
    if config is None:
        raise InputError(f"give a config by --config=FILE: {', '.join(config_lib.list_configs())}")
    config_lib.check_known("experiment", config.get("experiment"), EXPERIMENTS)
    setup_from_config, make_bench, parts = EXPERIMENTS[config.experiment]
    for part in _ONLY.value:
        config_lib.check_known("part", part, parts)
    mesh_lib.start_devices()
    setup = setup_from_config(config)
    mesh_lib.setup_compilation_cache()
    bench = make_bench(setup, _SECONDS.value)
    console = rich.console.Console()
    console.print(f"{metrics_lib.device_description()}, JAX {jax.__version__}")
    rows = {}
    for part in _ONLY.value or parts:
        try:
            for name, value, unit in parts[part](bench):
                rows[name] = {"value": value, "unit": unit}
                console.print(f"{name:42} {value:10.4g} {unit}")
        except InputError as error:
            console.print(f"{part}: left out, {error}")
    if _JSON.value:
        result = {
            "config": config.to_dict(),
            "device": metrics_lib.device_description(),
            "versions": metrics_lib.versions(),
            "rows": rows,
        }
        metrics_lib.write_json(_JSON.value, result)


if __name__ == "__main__":
    config_lib.run_app(main, output_required=True)
