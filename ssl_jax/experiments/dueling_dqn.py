"""Dueling double DQN on Atari, with a self-supervised task beside Q-learning.

Agarwal, Sinha and Ayush, "Is self-supervision helpful? Exploring self-supervision in reinforcement learning
and classification": a second head on the trunk of the Q-network answers a question about the frame stacks
that the agent has seen, such as the order of their frames (`pretext/auxiliary.py`). The agent is that of
Mnih et al. 2015 with double Q-learning, dueling heads, n-step returns and prioritized replay, each of which
can be switched off.

    vector step t     environments        learner (one jitted call)
                      show s_t
                      <- a_t              act: epsilon-greedy on s_t
                      play a_t            add (s_t, a_t) to the memory; draw K batches; K updates; priorities
                      show s_{t+1}        the next act waits for both

The environments play while the learner learns, and yet nothing is out of date: an update never needs what
the running step will show.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging

from ssl_jax import losses
from ssl_jax.atari import environments as environments_lib
from ssl_jax.atari.environments import Environments, TimeStep
from ssl_jax.atari.protocol import Protocol, learning_reward
from ssl_jax.atari.replay import Replay, ReplayState, Transitions
from ssl_jax.evaluation import atari_return
from ssl_jax.experiments import MAY_CHANGE
from ssl_jax.networks import layers, q_network, weights
from ssl_jax.networks.q_network import QNetwork
from ssl_jax.pretext import auxiliary
from ssl_jax.report import console, figures, page
from ssl_jax.runtime import checkpoints as checkpoints_lib
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.checkpoints import Checkpoints
from ssl_jax.runtime.errors import InputError
from ssl_jax.runtime.interruption import StopSignal
from ssl_jax.runtime.paths import UserPath

Metrics = dict[str, jax.Array]
Row = dict[str, np.ndarray]
ADVICE = "try a lower config.train.learning_rate"
TRAINING, EVALUATION, FINAL, RANDOM = range(4)  # what environments are for; no two share a seed


@flax.struct.dataclass
class Agent:
    """What one agent has learned. With S > 1 of them every array has a leading axis [S].

    Attributes:
      params: of the `QNetwork`, float32.
      target_params: of the target network.
      opt_state: of the Q-learning optimizer, and of that of the auxiliary steps if they alternate.
      best_params: those with the best evaluation so far.
      best_return: float32 [], its mean score; -inf before the first.
      best_step: int32 [], agent steps at which it was taken.
    """

    params: Any
    target_params: Any
    opt_state: Any
    best_params: Any
    best_return: jax.Array
    best_step: jax.Array


@flax.struct.dataclass
class State:
    """All that training changes: arrays only, so that a checkpoint is arrays.

    Attributes:
      step: int32 [], vector steps made, in each of which every environment makes one agent step.
      updates: int32 [], gradient updates of Q-learning made, of each agent.
      key: uint32 [2], the run's key; agent i draws at step t from `fold_in(fold_in(key, i), t)`.
      agent: see there.
      replay: what was played; on the device, or on the host.
    """

    step: jax.Array
    updates: jax.Array
    key: jax.Array
    agent: Agent
    replay: ReplayState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Play:
    """Section `environments`: of each agent.

    Attributes:
      num: environments that play side by side.
      threads: of the emulators, for all agents together; 0 lets envpool choose.
    """

    num: int
    threads: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Section `replay`.

    Attributes:
      capacity: transitions, of each agent; see `Replay`.
      n_step: agent steps of a return.
      priority_exponent: 0 draws uniformly.
      importance_exponent: of the weights against the bias of priorities, at the first step (Schaul et al.
        2016, Sec. 3.4).
      importance_steps: agent steps over which it grows to 1 in a line.
      place: "device", or "host" for memories larger than the device's: every batch then travels.
    """

    capacity: int
    n_step: int = 1
    priority_exponent: float = 0.0
    importance_exponent: float = 0.4
    importance_steps: int = 1_000_000
    place: Literal["device", "host"] = "device"


class Start(NamedTuple):
    """What of section `network` is not the network's: the checkpoints whose trunk it begins with, or None."""

    start_from: UserPath | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exploration:
    """Section `exploration`, in agent steps of all environments of an agent.

    Attributes:
      random_steps: played at random before the first update.
      decay_steps: over which epsilon falls in a line from 1, after those.
      final_epsilon: where it stays.
    """

    random_steps: int
    decay_steps: int
    final_epsilon: float

    def epsilon(self, steps: jax.Array) -> jax.Array:
        """The probability of a random action after so many agent steps."""
        progress = jnp.clip((steps - self.random_steps) / max(self.decay_steps, 1), 0, 1)
        return 1 + progress * (self.final_epsilon - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Auxiliary:
    """Section `auxiliary`: the task beside Q-learning.

    Attributes:
      name: of the task (`auxiliary.NAMES`), or "none".
      schedule: "alternate": after every Q-learning update one of the task, on the same frame stacks and
        with an optimizer of its own; "joint": one update by the sum of both gradients.
      weight: "joint": of the task's loss; "alternate": of its learning rate.
      grid: rows and columns of the jigsaw.
      max_permutations: classes of the jigsaw, see `auxiliary.make`.
    """

    name: str = "none"
    schedule: Literal["alternate", "joint"] = "alternate"
    weight: float = 1.0
    grid: tuple[int, int] = (2, 2)
    max_permutations: int = 100

    def __post_init__(self):
        if self.weight <= 0:
            raise InputError(
                f"config.auxiliary.weight must be above 0, not {self.weight}; name=none is without."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Section `train`; agent steps are those of all environments of one agent.

    Attributes:
      agent_steps: length of the training; an agent step is `protocol.frame_skip` frames.
      steps_per_update: agent steps for each update; one of it and the number of environments divides the
        other.
      batch_size: transitions of an update.
      gamma: discount of an agent step.
      double_q: the online network chooses the action that the target network values.
      target_period: updates after which the target network becomes a copy of the online one; it happens
        at the end of the vector step in which they are complete.
      optimizer: "adam", or "rmsprop", centred, as in Mnih et al. 2015.
      learning_rate: constant, until it decays.
      decay_share: share of the training, at its end, over which the learning rate falls to 0 in a line.
      optimizer_epsilon: keeps the optimizer from dividing by nothing.
      max_gradient_norm: of all gradients together (Wang et al. 2015: 10).
      log_every: a line of metrics.
      evaluate_every: an evaluation.
      checkpoint_every: a checkpoint; the environments then begin new episodes.
      keep_checkpoints: how many of the newest are kept.
    """

    agent_steps: int
    steps_per_update: int = 4
    batch_size: int = 32
    gamma: float = 0.99
    double_q: bool = True
    target_period: int
    optimizer: Literal["adam", "rmsprop"] = "adam"
    learning_rate: float
    decay_share: float = 0.0
    optimizer_epsilon: float = 1e-8
    max_gradient_norm: float = 10.0
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    keep_checkpoints: int = 1

    def __post_init__(self):
        for name in ("agent_steps", "steps_per_update", "batch_size", "target_period", "log_every",
                     "evaluate_every", "checkpoint_every", "keep_checkpoints"):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"config.train.{name} must be at least 1.")
        for name in ("learning_rate", "optimizer_epsilon", "max_gradient_norm"):
            if getattr(self, name) <= 0:
                raise InputError(f"config.train.{name} must be above 0, not {getattr(self, name)}.")
        if not 0 <= self.decay_share <= 1:
            raise InputError(f"config.train.decay_share must be from 0 to 1, not {self.decay_share}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Section `evaluation`; the protocol says how it is played.

    Attributes:
      num_envs: environments side by side, of each agent.
      episodes: of each evaluation beside training, a multiple of `num_envs`; those at the end take
        `protocol.evaluation_episodes`.
      video_frames: of the report's film, one an agent step; 0: there is none.
    """

    num_envs: int
    episodes: int
    video_frames: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything of a run that is not an array and does not change; built and checked from a config."""

    seed: int
    num_seeds: int
    protocol: Protocol
    play: Play
    network: QNetwork
    start_from: str | None
    replay: Replay
    memory: Memory
    exploration: Exploration
    task: auxiliary.Task | None
    auxiliary: Auxiliary
    train: Train
    optimizer: optax.GradientTransformation
    auxiliary_optimizer: optax.GradientTransformation
    evaluation: Evaluation

    @property
    def updates_per_step(self) -> int:
        """K, updates of a vector step; in all but every `steps_between_updates`-th there are none."""
        return max(1, self.play.num // self.train.steps_per_update)

    @property
    def steps_between_updates(self) -> int:
        """Vector steps from one with updates to the next."""
        return max(1, self.train.steps_per_update // self.play.num)

    @property
    def num_steps(self) -> int:
        """Vector steps of the training."""
        return -(-self.train.agent_steps // self.play.num)

    def rate_factor(self, step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        """What the learning rate is multiplied by in a vector step: 1, falling to 0 if it decays."""
        if not self.train.decay_share:
            return 1.0
        return jnp.minimum((self.num_steps - step) / (self.train.decay_share * self.num_steps), 1)

    def updates_at(self, step: int) -> bool:
        """Whether the vector step makes updates."""
        played = step * self.play.num >= self.exploration.random_steps
        return played and step % self.steps_between_updates == 0

    def over_agents(self, function: Callable, in_axes: tuple = ()) -> Callable:
        """The function of one agent, for all of them; of a single one itself, so that it costs nothing."""
        if self.num_seeds == 1:
            return function
        return jax.vmap(function, in_axes=in_axes or 0)


def setup_from_config(config: ml_collections.ConfigDict) -> Setup:
    """Reads and checks every section of a config, before anything expensive.

    Raises:
      InputError: a key that nobody reads, a wrong type, or values that do not fit together.
    """

    def make(
        *, experiment: str, seed: int, num_seeds: int, precision: Literal["float32", "bfloat16"],
        protocol: Mapping, environments: Mapping, network: Mapping, replay: Mapping, exploration: Mapping,
        auxiliary: Mapping, train: Mapping, evaluation: Mapping,
    ) -> dict:  # fmt: skip
        return locals()

    sections = make(**config_lib.unpack(config, make, path=""))
    config_lib.check_seed(sections["seed"])
    section = lambda name, builder, **options: config_lib.build(builder, sections[name], path=name, **options)

    protocol = section("protocol", Protocol, ignore=("frames_trained",))
    play = section("environments", Play)
    memory = section("replay", Memory)
    train = section("train", Train)
    asked = section("auxiliary", Auxiliary)
    exploration = section("exploration", Exploration)
    evaluation = section("evaluation", Evaluation)
    _check(sections, protocol, play, memory, train, exploration, evaluation)
    task = None
    config_lib.check_known("config.auxiliary.name", asked.name, ("none", *auxiliary.NAMES))
    if asked.name != "none":
        with config_lib.errors_of("auxiliary"):
            task = auxiliary.make(
                name=asked.name,
                stack=protocol.stack,
                frame_size=protocol.frame_size,
                grid=asked.grid,
                max_permutations=asked.max_permutations,
                seed=sections["seed"],
            )
    network = dict(sections["network"])
    start_from = network.pop("start_from", None)
    start_from = config_lib.unpack({"start_from": start_from}, Start, path="network")["start_from"]
    setup = Setup(
        seed=sections["seed"],
        num_seeds=sections["num_seeds"],
        protocol=protocol,
        play=play,
        network=config_lib.build(
            QNetwork,
            network,
            path="network",
            ignore=("parent", "name"),  # of every Flax module
            num_actions=environments_lib.num_actions(protocol),
            auxiliary_classes=task.num_classes if task else 0,
            dtype=jnp.dtype(sections["precision"]),
        ),
        start_from=start_from,
        replay=Replay(
            capacity=memory.capacity,
            num_envs=play.num,
            n_step=memory.n_step,
            gamma=train.gamma,
            priority_exponent=memory.priority_exponent,
            stack=protocol.stack,
            frame_size=protocol.frame_size,
        ),
        memory=memory,
        exploration=exploration,
        task=task,
        auxiliary=asked,
        train=train,
        optimizer=make_optimizer(train),
        auxiliary_optimizer=make_optimizer(train, asked.weight),
        evaluation=evaluation,
    )
    _check_lengths(setup)
    return setup


def _check_lengths(setup: Setup) -> None:
    """Raises InputError where the training ends before anything is learned from, or learned by."""
    train, num, between = setup.train, setup.play.num, setup.steps_between_updates
    first = -(-setup.exploration.random_steps // num)
    first += -first % between  # vector step of the first update
    if first >= setup.num_steps:
        raise InputError(
            f"config.train.agent_steps={train.agent_steps} makes no update, for the first one comes after "
            f"config.exploration.random_steps={setup.exploration.random_steps}; give at least "
            f"{first * num + 1} agent steps, or fewer random ones."
        )
    updates = setup.updates_per_step * len(range(first, setup.num_steps, between))
    if train.target_period >= updates:
        raise InputError(
            f"config.train.target_period={train.target_period} must be below the {updates} updates that "
            f"config.train.agent_steps={train.agent_steps} makes after config.exploration.random_steps="
            f"{setup.exploration.random_steps}, or all targets come from the network as it was initialised."
        )


def _check(sections, protocol, play, memory, train, exploration, evaluation):
    """Raises InputError where sections do not fit each other."""
    for path, value, least in (
        ("num_seeds", sections["num_seeds"], 1),
        ("environments.num", play.num, 1),
        ("environments.threads", play.threads, 0),
        ("replay.importance_steps", memory.importance_steps, 1),
        ("exploration.decay_steps", exploration.decay_steps, 0),
        ("network.hidden", sections["network"].get("hidden", 1), 1),
        ("evaluation.num_envs", evaluation.num_envs, 1),
        ("replay.n_step", memory.n_step, 1),
        ("replay.priority_exponent", memory.priority_exponent, 0),
        ("evaluation.video_frames", evaluation.video_frames, 0),
    ):
        if value < least:
            raise InputError(f"config.{path} must be at least {least}, not {value}.")
    gain = sections["network"].get("motion_gain", 1.0)
    if not 0 < gain < float("inf"):
        raise InputError(
            f"config.network.motion_gain must be a number above 0, not {gain}; 1 leaves stacks as they are."
        )
    for path, value in (
        ("exploration.final_epsilon", exploration.final_epsilon),
        ("replay.importance_exponent", memory.importance_exponent),
        ("train.gamma", train.gamma),
    ):
        if not 0 <= value <= 1:
            kind = "be a probability, from 0 to 1" if path.endswith("epsilon") else "lie in [0, 1]"
            raise InputError(f"config.{path} must {kind}, not {value}.")
    if protocol.evaluation_epsilon == 1:
        raise InputError(
            "config.protocol.evaluation_epsilon=1.0 would score a random agent, not the trained one; it "
            "must be below 1, such as 0.01."
        )
    if memory.capacity < train.batch_size:
        raise InputError(
            f"config.train.batch_size={train.batch_size} is larger than the whole memory, "
            f"config.replay.capacity={memory.capacity}; make the batch smaller or the memory larger."
        )
    # Where all environments begin at once, nothing is left to draw of what lies across that row.
    least = (memory.n_step + protocol.stack + 3) * play.num
    if memory.capacity < least:
        raise InputError(
            f"config.replay.capacity={memory.capacity} must be at least {least} for {play.num} environments, "
            f"stacks of {protocol.stack} and {memory.n_step}-step returns."
        )
    if play.num % train.steps_per_update and train.steps_per_update % play.num:
        raise InputError(
            f"config.environments.num={play.num} must be a multiple or a divisor of "
            f"config.train.steps_per_update={train.steps_per_update}."
        )
    if min(protocol.frame_size) < 36:
        raise InputError(
            f"config.protocol.frame_size={protocol.frame_size} is too small for the network: it takes frames "
            "of at least 36 x 36 pixels."
        )
    if train.checkpoint_every < 2 * play.num:
        raise InputError(
            f"config.train.checkpoint_every={train.checkpoint_every} must be at least {2 * play.num} for "
            f"{play.num} environments: they begin new episodes after it, and would never make a transition."
        )
    least = (memory.n_step + 2) * play.num
    if exploration.random_steps < least:
        raise InputError(
            f"config.exploration.random_steps={exploration.random_steps} must be at least {least} for "
            f"{play.num} environments and {memory.n_step}-step returns: before, there is nothing to learn."
        )
    for path, episodes in (
        ("evaluation.episodes", evaluation.episodes),
        ("protocol.evaluation_episodes", protocol.evaluation_episodes),
    ):
        if episodes < 1 or episodes % evaluation.num_envs:
            raise InputError(
                f"config.{path}={episodes} must be a multiple of config.evaluation.num_envs="
                f"{evaluation.num_envs}."
            )


def make_optimizer(train: Train, weight: float = 1.0) -> optax.GradientTransformation:
    """Gradients clipped together, then Adam or centred RMSProp; `weight` multiplies the learning rate."""
    rate = weight * train.learning_rate
    if train.optimizer == "adam":
        steps = optax.adam(rate, eps=train.optimizer_epsilon)
    else:
        steps = optax.rmsprop(rate, decay=0.95, eps=train.optimizer_epsilon, centered=True)
    return optax.chain(clip_by_global_norm(train.max_gradient_norm), steps)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """As `optax.clip_by_global_norm`, but a factor that XLA multiplies by where the gradient is used.

    A choice between gradients instead would be an array of its own: two more passes over memory.
    """

    def update(updates, state, params=None):
        del params
        factor = jnp.minimum(1.0, max_norm / optax.global_norm(updates))
        return jax.tree.map(lambda x: factor * x, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


# --- State


def create_state(setup: Setup, key: jax.Array) -> State:
    """A state before the first step.

    Raises:
      InputError: `network.start_from` holds no trunk that fits.
    """
    encoder = load_trunk(setup) if setup.start_from else None

    def create_agent(agent_key):
        stacks = jnp.zeros((1, *setup.protocol.frame_size, setup.protocol.stack), jnp.uint8)
        params = setup.network.init(agent_key, stacks, method="initialize")["params"]
        if encoder is not None:
            params = {**params, "trunk": encoder}
        return Agent(
            params=params,
            target_params=params,
            opt_state=_init_optimizers(setup, params),
            best_params=params,
            best_return=jnp.full((), -jnp.inf),
            best_step=jnp.zeros((), jnp.int32),
        )

    # Each array is committed to its device, as those of later states are: a call that is given some that
    # are and some that are not is compiled for either.
    devices = jax.devices()[0], memory_device(setup)
    here, there = (jax.sharding.SingleDeviceSharding(device) for device in devices)
    agents = jnp.arange(setup.num_seeds) if setup.num_seeds > 1 else jnp.int32(0)
    replay = jax.jit(setup.over_agents(lambda _: setup.replay.init()), out_shardings=there)(agents)
    return State(
        step=jnp.zeros((), jnp.int32, device=here),
        updates=jnp.zeros((), jnp.int32, device=here),
        key=jax.device_put(key, here),
        agent=jax.jit(setup.over_agents(create_agent), out_shardings=here)(agent_keys(setup, key)),
        replay=replay,
    )


def state_template(setup: Setup) -> State:
    """Shapes, dtypes and places of a state, without its arrays: a replay memory is large."""

    def placed(tree, device):
        place = jax.sharding.SingleDeviceSharding(device)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

    shapes = jax.eval_shape(functools.partial(create_state, setup), jax.random.PRNGKey(setup.seed))
    template = placed(shapes, jax.devices()[0])
    return template.replace(replay=placed(shapes.replay, memory_device(setup)))


def _init_optimizers(setup, params):
    if setup.task is None or setup.auxiliary.schedule == "joint":
        return {"q": setup.optimizer.init(params)}
    return {
        "q": setup.optimizer.init(_without(params, "auxiliary_head")),
        "auxiliary": setup.auxiliary_optimizer.init(_only(params, "trunk", "auxiliary_head")),
    }


def _without(params, name):
    return {key: value for key, value in params.items() if key != name}


def _only(params, *names):
    return {name: params[name] for name in names}


def agent_keys(setup: Setup, key: jax.Array) -> jax.Array:
    """The keys of the agents, uint32 [S, 2], or [2] for one; those of the first ones do not depend on S."""
    of_agent = functools.partial(jax.random.fold_in, key)
    return of_agent(0) if setup.num_seeds == 1 else jax.vmap(of_agent)(jnp.arange(setup.num_seeds))


def memory_device(setup: Setup) -> jax.Device:
    """Where the replay memory lives."""
    return jax.devices("cpu")[0] if setup.memory.place == "host" else jax.devices()[0]


def check_memory(setup: Setup, device: jax.Device) -> None:
    """Raises InputError if the replay memories do not fit into what is free on their device."""
    needed, free = setup.num_seeds * setup.replay.num_bytes, mesh_lib.free_bytes(device)
    if free is None or needed <= 0.9 * free:
        return
    agents = f" for {setup.num_seeds} agents" if setup.num_seeds > 1 else ""
    fitting = int(setup.memory.capacity * 0.9 * free / needed)
    other = (
        " or config.replay.place=host" if setup.memory.place == "device" and device.platform != "cpu" else ""
    )
    raise InputError(
        f"a replay memory of config.replay.capacity={setup.memory.capacity:,} transitions{agents} needs "
        f"{needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free on {device}: try "
        f"config.replay.capacity={fitting:,}{other}."
    )


def load_trunk(setup: Setup) -> Any:
    """Parameters of a trunk that another run left, fitted to the stack.

    Raises:
      InputError: there is no checkpoint, or it holds no trunk of this shape or numbers that are not finite.
    """
    raw = checkpoints_lib.restore_raw(setup.start_from)
    candidates = (("params", "encoder"), ("agent", "params", "trunk"))
    for path in candidates:
        found = raw
        for name in path:
            found = found.get(name, {}) if isinstance(found, Mapping) else {}
        if found:
            weights.check_finite(weights.flatten(found), f"config.network.start_from={setup.start_from}")
            return q_network.trunk_from_encoder(found, setup.protocol.stack)
    raise InputError(
        f"config.network.start_from={setup.start_from} holds neither an encoder of pre-training nor the "
        "trunk of a Q-network."
    )


# --- Acting and learning, of one agent


def act(setup: Setup, step: jax.Array, key: jax.Array, params: Any, s_t: jax.Array) -> jax.Array:
    """Actions int32 [N] of one agent on frame stacks uint8 [N, H, W, stack]."""
    key = jax.random.fold_in(jax.random.fold_in(key, step), 0)
    epsilon = setup.exploration.epsilon(step * setup.play.num)
    return losses.epsilon_greedy(key, setup.network.apply({"params": params}, s_t), epsilon)


def remember(
    setup: Setup, num_updates: int, step: jax.Array, key: jax.Array, replay: ReplayState, row: Mapping
) -> tuple[ReplayState, Transitions | None]:
    """Adds a vector step to the memory and draws the batches of its updates.

    Args:
      setup: of the run.
      num_updates: K, static.
      step: int32 [].
      key: of the agent.
      replay: its memory.
      row: the arguments of `Replay.add`, each [N, ...].

    Returns:
      The memory, and transitions with axes [K, batch_size, ...]; None if K is 0. Importance weights are
      relative to the largest of all K batches.
    """
    replay = setup.replay.add(replay, **row)
    if not num_updates:
        return replay, None
    key = jax.random.fold_in(jax.random.fold_in(key, step), 1)
    progress = jnp.minimum(step * setup.play.num / setup.memory.importance_steps, 1)
    beta = setup.memory.importance_exponent + progress * (1 - setup.memory.importance_exponent)
    drawn = setup.replay.sample(replay, key, num_updates * setup.train.batch_size, beta)
    batches = jax.tree.map(lambda x: x.reshape(num_updates, setup.train.batch_size, *x.shape[1:]), drawn)
    return replay, batches


def improve(
    setup: Setup, step: jax.Array, updates: jax.Array, key: jax.Array, agent: Agent, batches: Transitions
) -> tuple[Agent, jax.Array, Metrics]:
    """K updates, one after the other, and the target network if it is due.

    Args:
      setup: of the run.
      step: int32 [], vector step.
      updates: int32 [], made before.
      key: of the agent.
      agent: before.
      batches: transitions [K, batch_size, ...].

    Returns:
      The agent, the errors of the transitions float32 [K, batch_size], and means of the updates' metrics.
    """
    num_updates = batches.r_t.shape[0]
    key = jax.random.fold_in(jax.random.fold_in(key, step), 2)
    keys = jax.random.split(key, num_updates)
    function = functools.partial(update, setup, agent.target_params, rate=setup.rate_factor(step))
    carry = agent.params, agent.opt_state
    if layers.fast_on_cpu():
        # In a loop's body XLA's CPU backend computes convolutions on one thread: 4 times slower.
        outputs = []
        for i in range(num_updates):
            carry, output = function(carry, jax.tree.map(lambda x, i=i: x[i], (batches, keys)))
            outputs.append(output)
        td_errors, metrics = jax.tree.map(lambda *x: jnp.stack(x), *outputs)
    else:
        carry, (td_errors, metrics) = jax.lax.scan(function, carry, (batches, keys))
    params, opt_state = carry
    period = setup.train.target_period
    due = (updates + num_updates) // period > updates // period
    # A condition and not a selection of values, which would copy the target network every time.
    target_params = jax.lax.cond(due, lambda: params, lambda: agent.target_params)
    agent = agent.replace(params=params, target_params=target_params, opt_state=opt_state)
    return agent, td_errors, jax.tree.map(jnp.mean, metrics)


def update(
    setup: Setup, target_params: Any, carry: tuple, inputs: tuple, rate: jax.typing.ArrayLike = 1.0
) -> tuple[tuple, tuple]:
    """One update of Q-learning, and one of the auxiliary task with it or after it.

    Args:
      setup: of the run.
      target_params: of the target network.
      carry: params and opt_state.
      inputs: transitions [batch_size, ...], and a key.
      rate: what the learning rate is multiplied by.

    Returns:
      carry; and errors float32 [batch_size] with the scalars for the metrics.
    """
    (params, opt_state), (batch, key) = carry, inputs
    gradient, (td_errors, metrics) = q_gradient(setup, params, target_params, batch)
    metrics["train/gradient_norm"] = optax.global_norm(gradient)
    if setup.task is None:
        params, q_state = _apply(setup.optimizer, rate, gradient, opt_state["q"], params)
        return (params, {"q": q_state}), (td_errors, metrics)

    if setup.auxiliary.schedule == "joint":
        other, task_metrics = auxiliary_gradient(setup, params, batch.s_tm1, key)
        weighted = jax.tree.map(lambda x: setup.auxiliary.weight * x, other)
        both = {**gradient, **weighted, "trunk": jax.tree.map(jnp.add, gradient["trunk"], weighted["trunk"])}
        params, q_state = _apply(setup.optimizer, rate, both, opt_state["q"], params)
        opt_state = {"q": q_state}
    else:
        learned, q_state = _apply(
            setup.optimizer, rate, gradient, opt_state["q"], _without(params, "auxiliary_head")
        )
        params = {**params, **learned}
        other, task_metrics = auxiliary_gradient(setup, params, batch.s_tm1, key)
        asked = _only(params, "trunk", "auxiliary_head")
        learned, task_state = _apply(setup.auxiliary_optimizer, rate, other, opt_state["auxiliary"], asked)
        params = {**params, **learned}
        opt_state = {"q": q_state, "auxiliary": task_state}
    metrics |= task_metrics | compare_gradients(gradient["trunk"], other["trunk"])
    return (params, opt_state), (td_errors, metrics)


def _apply(optimizer, rate, gradient, opt_state, params):
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    updates = jax.tree.map(lambda x: rate * x, updates)
    return optax.apply_updates(params, updates), opt_state


def q_gradient(setup: Setup, params: Any, target_params: Any, batch: Transitions) -> tuple[Any, tuple]:
    """Gradient of the Huber loss of double Q-learning, without that of the auxiliary head.

    Returns:
      Gradient; and errors float32 [batch_size] with the scalars for the metrics.
    """

    def values(params, s):
        return setup.network.apply({"params": params}, s)

    params = _without(params, "auxiliary_head")
    q_t_value = values(target_params, batch.s_t)
    q_t_selector = values(params, batch.s_t) if setup.train.double_q else q_t_value

    def loss_function(params):
        q_tm1 = values(params, batch.s_tm1)
        errors = losses.double_q_errors(
            q_tm1, batch.a_tm1, batch.r_t, batch.discount_t, q_t_value, q_t_selector
        )
        loss = (batch.weights * optax.losses.huber_loss(errors)).mean()
        metrics = {
            "train/q_loss": loss,
            "train/td_error": jnp.abs(errors).mean(),
            "train/q_value": q_tm1.max(-1).mean(),
        }
        return loss, (errors, metrics)

    return jax.grad(loss_function, has_aux=True)(params)


def auxiliary_gradient(setup: Setup, params: Any, stacks: jax.Array, key: jax.Array) -> tuple[Any, Metrics]:
    """Gradient of the auxiliary task's cross-entropy for the trunk and its head, and its metrics."""
    inputs, labels = setup.task.function(key, stacks)

    def loss_function(params):
        logits = setup.network.apply({"params": params}, inputs, method="auxiliary")
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        accuracy = (logits.argmax(-1) == labels).mean()
        return loss, {"auxiliary/loss": loss, "auxiliary/accuracy": accuracy}

    return jax.grad(loss_function, has_aux=True)(_only(params, "trunk", "auxiliary_head"))


def compare_gradients(of_q: Any, of_task: Any) -> Metrics:
    """Norms of two gradients of the trunk, and their cosine: above 0 they pull the same way."""
    q_norm, task_norm = optax.global_norm(of_q), optax.global_norm(of_task)
    product = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, of_q, of_task)))
    return {
        "gradient/q_norm": q_norm,
        "gradient/auxiliary_norm": task_norm,
        "gradient/cosine": product / jnp.maximum(q_norm * task_norm, 1e-12),
    }


# --- The jitted calls of the loop, of all agents


class Calls(NamedTuple):
    """What the loop calls.

    Attributes:
      act: see `make_actor`.
      learn: `make_learner` with the updates of a vector step.
      remember: `make_learner` without.
    """

    act: Callable[[State, np.ndarray], jax.Array]
    learn: Callable[[State, Row], tuple[State, Metrics]]
    remember: Callable[[State, Row], tuple[State, Metrics]]


def make_calls(setup: Setup) -> Calls:
    """The calls, each compiled when it is first used."""
    return Calls(make_actor(setup), make_learner(setup, setup.updates_per_step), make_learner(setup, 0))


def make_actor(setup: Setup) -> Callable[[State, np.ndarray], jax.Array]:
    """(state, s_t uint8 [S * N, H, W, stack]) -> actions int32 [S * N]."""

    @functools.partial(jax.jit, compiler_options=layers.compiler_options())
    def actor(step, key, params, s_t):
        actions = setup.over_agents(functools.partial(act, setup), (None, 0, 0, 0))(
            step, agent_keys(setup, key), params, _by_agent(setup, s_t)
        )
        return actions.reshape(-1)

    return lambda state, s_t: actor(state.step, state.key, state.agent.params, s_t)


def make_learner(setup: Setup, num_updates: int) -> Callable[[State, Row], tuple[State, Metrics]]:
    """(state, row) -> (state, metrics) with so many updates; the state is consumed.

    Where the memory lives with the network this is one jitted call. With the memory on the host, adding and
    drawing, updating, and setting priorities are a call each.
    """
    remembering = setup.over_agents(functools.partial(remember, setup, num_updates), (None, 0, 0, 0))
    improving = setup.over_agents(functools.partial(improve, setup), (None, None, 0, 0, 0))
    settling = setup.over_agents(setup.replay.update_priorities, (0, 0, 0))

    def add_and_draw(step, key, replay, row):
        return remembering(step, agent_keys(setup, key), replay, row)

    def learn(step, updates, key, agent, batches):
        agent, td_errors, metrics = improving(step, updates, agent_keys(setup, key), agent, batches)
        return agent, td_errors, jax.tree.map(jnp.mean, metrics)

    def settle(replay, indices, td_errors):
        flat = (setup.num_seeds, -1) if setup.num_seeds > 1 else (-1,)
        return settling(replay, indices.reshape(flat), td_errors.reshape(flat))

    if setup.memory.place == "host":
        add_and_draw = jax.jit(add_and_draw, donate_argnums=2)
        learn = jax.jit(learn, donate_argnums=3, compiler_options=layers.compiler_options())
        settle = jax.jit(settle, donate_argnums=0)

    def learner(state, row):
        here, there = (lambda tree: tree,) * 2
        if setup.memory.place == "host":
            host, device = memory_device(setup), jax.devices()[0]
            here, there = (functools.partial(jax.device_put, device=place) for place in (host, device))
        step, key = here((state.step, state.key))
        replay, batches = add_and_draw(step, key, state.replay, row)
        agent, metrics = state.agent, {}
        if num_updates:
            agent, td_errors, metrics = learn(state.step, state.updates, state.key, agent, there(batches))
            replay = settle(replay, batches.indices, here(td_errors))
        state = state.replace(
            step=state.step + 1, updates=state.updates + num_updates, agent=agent, replay=replay
        )
        return state, metrics

    if setup.memory.place == "host":
        return learner
    return jax.jit(learner, donate_argnums=0, compiler_options=layers.compiler_options())


def _by_agent(setup, array):
    """[S * N, ...] -> [S, N, ...], or itself for one agent."""
    if setup.num_seeds == 1:
        return array
    return array.reshape(setup.num_seeds, -1, *array.shape[1:])


def make_row(setup: Setup, time_step: TimeStep, actions: np.ndarray) -> Row:
    """What the memory keeps of a vector step, each [N, ...] or [S, N, ...]."""
    row = {
        "frame": time_step.frame,
        "first": time_step.first,
        "r_t": learning_reward(setup.protocol, time_step.r_t),
        "discount_t": time_step.discount_t,
        "action": actions.astype(np.uint8),
    }
    return {name: _by_agent(setup, array) for name, array in row.items()}


# --- The run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a run writes; opened by `run`, used by its loop.

    Attributes:
      workdir: its directory.
      checkpoints: in it.
      metrics: in it.
      stopwatch: of its parts.
      episodes: by agent, how many training episodes have ended; saved with every checkpoint.
    """

    workdir: Path
    checkpoints: Checkpoints
    metrics: metrics_lib.Metrics
    stopwatch: metrics_lib.Stopwatch
    episodes: list[int]


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains, scores the agents, and writes the report; goes on where it was stopped.

    After a checkpoint all environments begin new episodes, in a run that goes on as in one that is not
    interrupted, since an emulator's state cannot be saved: so a run that was killed and goes on ends with
    the same parameters as one that was not. One that was told to stop (SIGTERM, Ctrl-C) saves where it is,
    and begins new episodes there, which the other did not.

    Args:
      config: see `configs/dueling_dqn.py`.
      workdir: a directory for this config alone.

    Returns:
      What `results.json` holds.

    Raises:
      InputError: see `setup_from_config` and `create_state`; and a workdir of another config, broken
        checkpoints, a full disk, a loss that is not finite.
      SystemExit: the run was told to stop, and has saved what it had.
    """
    setup = setup_from_config(config)
    if jax.process_count() > 1:
        raise InputError("dueling_dqn runs in one process; start it without the others.")
    check_memory(setup, memory_device(setup))
    template = state_template(setup)
    workdir = config_lib.claim_workdir(
        workdir, config, may_change=MAY_CHANGE["dueling_dqn"], length=length(setup.train)
    )
    mesh_lib.setup_compilation_cache()
    checkpoints = Checkpoints(workdir / "checkpoints", keep=setup.train.keep_checkpoints)
    restored = checkpoints.restore(template)
    finished = workdir / config_lib.RESULTS_FILE
    if restored is not None and restored[0] == setup.num_steps * setup.play.num and finished.exists():
        checkpoints.close()
        return console.show_finished(workdir)
    saved = {"seconds": {}, "episodes": [0] * setup.num_seeds}
    if restored is None:
        state = create_state(setup, jax.random.PRNGKey(setup.seed))
    else:
        step, state, saved = restored
        logging.info("Going on from agent step %d.", step)
    config_lib.keep_changes(workdir, config, length(setup.train))
    around = Surroundings(
        workdir=workdir,
        checkpoints=checkpoints,
        metrics=metrics_lib.Metrics(workdir, resume_step=restored[0] if restored else None),
        stopwatch=metrics_lib.Stopwatch(saved["seconds"]),
        episodes=saved["episodes"],
    )
    try:
        state = train(setup, around, state)
        return judge(setup, around, state, config)
    finally:
        around.metrics.close()
        checkpoints.close()


def length(train: Train) -> config_lib.Length:
    """Whether a run that has ended may be made longer; new episodes begin there, as at every checkpoint."""
    fixed = None
    if train.decay_share:
        fixed = (
            f"with config.train.decay_share={train.decay_share} the learning rate has fallen to 0 by then; "
            "begin another one with its network by --config.network.start_from"
        )
    return config_lib.Length("train.agent_steps", fixed)


def open_environments(setup: Setup, purpose: int, step: int, num_envs: int) -> Environments:
    """Environments of all agents, those of the first one first, for one purpose from one step on."""
    (seed,) = np.random.SeedSequence(setup.seed, spawn_key=(purpose, step)).generate_state(1, np.uint64)
    return Environments(setup.protocol, setup.num_seeds * num_envs, int(seed), setup.play.threads)


def train(setup: Setup, around: Surroundings, state: State) -> State:
    """The loop: from the state's step to the last one, with everything that happens beside it."""
    step, last, watch = int(state.step), setup.num_steps, around.stopwatch
    if step == last:
        return state
    calls, player = make_calls(setup), make_player(setup)
    ledger = metrics_lib.Ledger(around.metrics, around.checkpoints, ADVICE)
    due = lambda every: step % max(1, every // setup.play.num) == 0 or step == last
    ended = []  # (agent, return, length) of the training episodes since the last line
    environments = open_environments(setup, TRAINING, step, setup.play.num)
    time_step = environments.reset()
    with (
        StopSignal() as stop,
        metrics_lib.Progress(
            last * setup.play.num,
            start=step * setup.play.num,
            description="training",
            warm_from=setup.exploration.random_steps,
        ) as progress,
    ):
        while step < last and not stop.received:
            state, time_step, scalars = vector_step(setup, calls, watch, environments, state, time_step, step)
            step += 1
            agent_step = step * setup.play.num
            if scalars:
                ledger.enter(agent_step, scalars)
            for i in np.flatnonzero(time_step.last):
                around.episodes[i // setup.play.num] += 1
                ended.append((time_step.episode_return[i], time_step.episode_length[i]))
            if due(setup.train.log_every):
                line = ledger.write_page(agent_step, more_numbers(setup, around, step, ended))
                shown = {"loss": "train/q_loss", "score": "train/episode_return"}
                progress.update(agent_step, {k: line[name] for k, name in shown.items() if name in line})
                ended.clear()
            if due(setup.train.evaluate_every):
                ledger.close_page()
                with watch("evaluation"):
                    state, scores = evaluate_beside(setup, player, state, agent_step)
                around.metrics.write(agent_step, scores)
                progress.update(agent_step, {"eval": scores["eval/return_mean"]})
            if due(setup.train.checkpoint_every):
                ledger.close_page()
                environments.close()
                save(around, agent_step, state)
                environments = open_environments(setup, TRAINING, step, setup.play.num)
                time_step = environments.reset()
            progress.update(agent_step)
    environments.close()
    if stop.received and step < last:
        ledger.close_page()
        save(around, step * setup.play.num, state)
        around.checkpoints.wait()
        stop.leave(step * setup.play.num)
    return state


def vector_step(
    setup: Setup,
    calls: Calls,
    watch: metrics_lib.Stopwatch,
    environments: Environments,
    state: State,
    time_step: TimeStep,
    step: int,
) -> tuple[State, TimeStep, Metrics]:
    """Acts on a time step, and learns while the environments play what was chosen.

    Args:
      setup: of the run.
      calls: from `make_calls`.
      watch: gets the seconds of "act" (mostly waiting for the updates of the step before), of "learn" or
        "remember" (handing over a row), and of "environment" (waiting for it).
      environments: that showed `time_step` last.
      state: before the step; consumed.
      time_step: what they showed.
      step: the state's.

    Returns:
      The state after the step, the next time step, and the metrics of the updates; {} if there were none.
    """
    with watch("act", compiles=True):
        actions = np.asarray(calls.act(state, time_step.s_t))
    environments.send(actions)
    updating = setup.updates_at(step)
    with watch("learn" if updating else "remember", compiles=True):
        row = make_row(setup, time_step, actions)
        state, scalars = (calls.learn if updating else calls.remember)(state, row)
    with watch("environment"):
        time_step = environments.recv()
    return state, time_step, scalars


def more_numbers(setup: Setup, around: Surroundings, step: int, ended: list) -> dict[str, float]:
    """What a line of metrics says besides the updates: exploration, training episodes, speed."""
    numbers = {
        "train/epsilon": float(setup.exploration.epsilon(jnp.asarray(step * setup.play.num))),
        "train/episodes": float(np.mean(around.episodes)),
    }
    if ended:
        returns, lengths = zip(*ended, strict=True)
        numbers |= {
            "train/episode_return": float(np.mean(returns)),
            "train/episode_length": float(np.mean(lengths)),
        }
    seconds, blocks = around.stopwatch.lap()
    working = sum(seconds[part] for part in ("act", "learn", "remember", "environment"))
    if blocks["act"]:
        numbers |= {
            "time/agent_steps_per_second": blocks["act"] * setup.play.num / working,
            "time/environment_wait_share": seconds["environment"] / working,
        }
    return numbers


def save(around: Surroundings, agent_step: int, state: State) -> None:
    """Writes a checkpoint in the background."""
    with around.stopwatch("checkpoint"):
        data_state = {"seconds": around.stopwatch.seconds, "episodes": around.episodes}
        around.checkpoints.save(agent_step, state, data_state)


# --- Scores


Player = Callable[[float, Any, jax.Array, np.ndarray], jax.Array]


def make_player(setup: Setup) -> Player:
    """(epsilon, params of the agents, key, s_t uint8 [S * N, H, W, stack]) -> actions int32 [S * N]."""

    @functools.partial(jax.jit, compiler_options=layers.compiler_options())
    def player(epsilon, params, key, s_t):
        def act_of_one(key, params, s_t):
            q = setup.network.apply({"params": params}, s_t)
            return losses.epsilon_greedy(key, q, epsilon)

        actions = setup.over_agents(act_of_one)(agent_keys(setup, key), params, _by_agent(setup, s_t))
        return actions.reshape(-1)

    return player


def play_games(
    setup: Setup,
    player: Player,
    params: Any,
    purpose: int,
    step: int,
    episodes: int,
    *,
    random: bool = False,
    video: int = 0,
) -> atari_return.Games:
    """Full episodes under the evaluation's protocol.

    Args:
      setup: of the run.
      player: from `make_player`.
      params: of the agents.
      purpose: EVALUATION or FINAL or RANDOM; with `step` it decides the environments' seeds.
      step: see there.
      episodes: of each agent, a multiple of `evaluation.num_envs`.
      random: act at random instead.
      video: frames of the film at most.

    Returns:
      Games with returns and lengths [S, episodes].
    """
    epsilon = 1.0 if random else setup.protocol.evaluation_epsilon
    environments = open_environments(setup, purpose, step, setup.evaluation.num_envs)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(setup.seed), purpose), step)
    act_all = functools.partial(player, epsilon, params)
    games = atari_return.play(environments, act_all, setup.num_seeds * episodes, key, video)
    environments.close()
    by_agent = (setup.num_seeds, episodes)
    return games._replace(returns=games.returns.reshape(by_agent), lengths=games.lengths.reshape(by_agent))


def evaluate_beside(
    setup: Setup, player: Player, state: State, agent_step: int
) -> tuple[State, dict[str, float]]:
    """Scores the agents as they are; keeps those that are better than ever."""
    games = play_games(setup, player, state.agent.params, EVALUATION, agent_step, setup.evaluation.episodes)
    means = games.returns.mean(1)
    summary = atari_return.summarize(games.returns)
    scores = {f"eval/{name}": summary[name] for name in ("return_mean", "return_low", "return_high")}
    if setup.num_seeds > 1:
        scores |= {f"eval/return_seed_{i}": mean for i, mean in enumerate(means)}

    def keep_best(agent, mean):
        better = mean > agent.best_return
        return agent.replace(
            best_params=jax.tree.map(functools.partial(jnp.where, better), agent.params, agent.best_params),
            best_return=jnp.where(better, mean, agent.best_return),
            best_step=jnp.where(better, agent_step, agent.best_step).astype(jnp.int32),
        )

    means = jnp.asarray(means if setup.num_seeds > 1 else means[0], jnp.float32)
    agent = jax.jit(setup.over_agents(keep_best))(state.agent, means)
    scores["eval/best_return"] = float(np.mean(agent.best_return))
    return state.replace(agent=agent), scores


def judge(setup: Setup, around: Surroundings, state: State, config) -> dict[str, Any]:
    """Final scores, figures, results.json, report.html and the table in the terminal."""
    agent_step = int(state.step) * setup.play.num
    with around.stopwatch("evaluation"):
        scores = final_scores(setup, around, state, agent_step)
    draw_figures(setup, around, state)
    last = scores["agents"]["last"]
    results = {
        **metrics_lib.provenance(config, around.stopwatch.seconds),
        "final": {f"eval/{name}": last[name] for name in ("return_mean", "return_low", "return_high")},
        "scores": scores,
        "auxiliary": {
            "name": setup.auxiliary.name,
            "num_classes": setup.task.num_classes if setup.task else 0,
            "schedule": setup.auxiliary.schedule,
        },
    }
    metrics_lib.write_json(around.workdir / config_lib.RESULTS_FILE, results)
    page.build(around.workdir)
    console.print_results(around.workdir)
    return results


def final_scores(setup: Setup, around: Surroundings, state: State, agent_step: int) -> dict[str, Any]:
    """The last agents, the best ones and random ones, over the protocol's full number of episodes.

    The best were chosen by the evaluations beside training; here they play other games than those.
    """
    player = make_player(setup)
    episodes, video = setup.protocol.evaluation_episodes, setup.evaluation.video_frames
    agent = state.agent
    best_step = np.asarray(agent.best_step)
    games = {
        "last": play_games(setup, player, agent.params, FINAL, agent_step, episodes, video=video),
        "random": play_games(setup, player, agent.params, RANDOM, 0, episodes, random=True),
    }
    if (best_step == agent_step).all():
        games["best"] = games["last"]
    else:
        games["best"] = play_games(setup, player, agent.best_params, FINAL, 0, episodes)
    steps = {"last": agent_step, "best": best_step.tolist(), "random": 0}
    trained = agent_step * setup.protocol.frame_skip
    returns_of = {name: found.returns for name, found in games.items()}
    returns_of["random"] = returns_of["random"].reshape(1, -1)  # there is but one random agent
    scores = {
        "protocol": dataclasses.asdict(dataclasses.replace(setup.protocol, frames_trained=trained)),
        "agents": {
            name: {
                "step": steps[name],
                **atari_return.summarize(returns_of[name]),
                "returns": games[name].returns.tolist(),
            }
            for name in ("last", "best", "random")
        },
        "reference": atari_return.REFERENCE.get(setup.protocol.game, {}),
    }
    if video:
        directory = around.workdir / "figures"
        directory.mkdir(exist_ok=True)
        film = figures.gif(games["last"].video, frames_per_second=15, scale=4)
        (directory / "episode.gif").write_bytes(film)
    return scores


def draw_figures(setup: Setup, around: Surroundings, state: State) -> None:
    """Writes pictures of frame stacks from the memory, and of what the auxiliary task makes of them."""
    replay = state.replay
    if setup.num_seeds > 1:
        replay = jax.tree.map(lambda x: x[0], replay)
    stacks = setup.replay.sample(replay, jax.random.PRNGKey(setup.seed), 4).s_tm1
    inputs, labels = setup.task.function(jax.random.PRNGKey(0), stacks) if setup.task else (None, None)
    figure = figures.stacks(*(None if x is None else np.asarray(x) for x in (stacks, inputs, labels)))
    figures.save(around.workdir / "figures" / "stacks.png", figure)
