"""Atari games side by side, exact at the edges of episodes: envpool behind one time step.

    time step   t0    t1    t2    t3    t4    t5
    frame       f0    f1    f2    f3    f0    f1     The emulator starts a new game by itself, at the step
    first       yes   .     .     .     yes   .      after the last one of a game: that step ignores its
    last        .     .     .     yes   .     .      action, the one sent at t3, and shows the next f0.
    r_t         0     r1    r2    r3    0     r1

`r_t` and `discount_t` belong to the action that led to the time step, as in dm_env and rlax. Between t3
and t4 there is no transition: nothing may be learned from the pair.
"""

from typing import NamedTuple

import numpy as np

from ssl_jax.atari.protocol import Protocol


class TimeStep(NamedTuple):
    """What N environments show at one moment; row i is environment i.

    Attributes:
      frame: uint8 [N, height, width], the newest frame, grey; what a replay memory stores.
      s_t: uint8 [N, height, width, stack], the last frames, oldest first; an episode's first frame stands
        for those before it. A transposed view: it costs nothing until it is read.
      r_t: float32 [N], raw score of the last action.
      discount_t: float32 [N], 0 where the game is over (or a life was lost, if the protocol says so), else
        1, also where the episode was truncated.
      first: bool [N], this is the first time step of an episode; `r_t` is 0, the action was ignored.
      last: bool [N], this is the last time step of an episode, by the game's end or by truncation.
      lives: int32 [N], as the game counts them; 0 where it does not.
      episode_return: float32 [N], raw score since the episode began; complete where `last`.
      episode_length: int32 [N], agent steps since the episode began; complete where `last`.
    """

    frame: np.ndarray
    s_t: np.ndarray
    r_t: np.ndarray
    discount_t: np.ndarray
    first: np.ndarray
    last: np.ndarray
    lives: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray


class Environments:
    """N games of one protocol, stepped together by envpool's threads.

    `send` hands over the actions and returns at once, `recv` waits for what came of them: in between the
    caller can learn. The same protocol, seed and actions give the same time steps, whatever `threads` is,
    and environment i does not depend on how many there are.

    Attributes:
      protocol: how the games are played.
      num_envs: N.
      num_actions: actions are integers in [0, num_actions).
    """

    def __init__(self, protocol: Protocol, num_envs: int, seed: int, threads: int = 0):
        """Starts the emulators.

        Args:
          protocol: how the games are played.
          num_envs: N.
          seed: of no-op starts and sticky actions; another seed shares no environment with this one.
          threads: of the emulators; 0 lets envpool choose.
        """
        import envpool  # Here, so that importing the module does not load the emulator.

        self.protocol = protocol
        self.num_envs = num_envs
        # Seeds seed, seed + 1, ... (envpool's own) would share all but one environment between two runs.
        seeds = [np.random.SeedSequence(seed, spawn_key=(i,)).generate_state(1)[0] for i in range(num_envs)]
        self._pool = envpool.make_gymnasium(
            f"{protocol.game}-v5",
            num_envs=num_envs,
            num_threads=threads,
            env_seed=[int(env_seed >> 1) for env_seed in seeds],  # 31 bits: an int32
            max_episode_steps=protocol.max_episode_steps,
            stack_num=protocol.stack,
            frame_skip=protocol.frame_skip,
            noop_max=protocol.noop_max,
            use_fire_reset=protocol.fire_on_reset,
            img_height=protocol.frame_size[0],
            img_width=protocol.frame_size[1],
            full_action_space=protocol.full_action_space,
            repeat_action_probability=protocol.sticky_actions,
            # Lives and clipping are ours, so that stacks and scores go on through a lost life.
            episodic_life=False,
            zero_discount_on_life_loss=False,
            reward_clip=False,
        )
        self.num_actions = int(self._pool.action_space.n)
        self._lives = np.zeros(num_envs, np.int32)
        self._return = np.zeros(num_envs, np.float32)
        self._last = np.ones(num_envs, bool)

    def reset(self) -> TimeStep:
        """Starts a new episode everywhere; the running ones end without a last time step."""
        self._last = np.ones(self.num_envs, bool)
        stacks, info = self._pool.reset()
        nothing = np.zeros(self.num_envs, bool)
        return self._time_step(stacks, np.zeros(self.num_envs, np.float32), nothing, info)

    def send(self, actions: np.ndarray) -> None:
        """Lets the emulators go on with actions, integers [N]; those of `last` time steps are ignored."""
        self._pool.send(np.asarray(actions, np.int32))

    def recv(self) -> TimeStep:
        """Waits for the time step that the actions of the last `send` led to."""
        stacks, reward, terminated, truncated, info = self._pool.recv()
        return self._time_step(stacks, reward, terminated | truncated, info)

    def step(self, actions: np.ndarray) -> TimeStep:
        """`send` and `recv`."""
        self.send(actions)
        return self.recv()

    def close(self) -> None:
        """Frees the emulators and their threads."""
        del self._pool  # envpool's own close() only closes its windows

    def _time_step(self, stacks: np.ndarray, reward: np.ndarray, last: np.ndarray, info: dict) -> TimeStep:
        first = self._last
        # The emulator's own word: a game that ends with the last step before the cap is over all the same.
        discount = 1 - info["terminated"].astype(np.float32)
        if self.protocol.life_loss:
            discount[~first & (info["lives"] < self._lives)] = 0
        self._last = last
        self._lives = info["lives"]
        self._return = np.where(first, np.float32(0), self._return) + reward
        return TimeStep(
            frame=stacks[:, -1],
            s_t=stacks.transpose(0, 2, 3, 1),
            r_t=reward,
            discount_t=discount,
            first=first,
            last=last,
            lives=info["lives"],
            episode_return=self._return,
            episode_length=info["elapsed_step"],
        )


def num_actions(protocol: Protocol) -> int:
    """How many actions the game has under a protocol; starts no emulator."""
    import envpool

    spec = envpool.make_spec(f"{protocol.game}-v5", full_action_space=protocol.full_action_space)
    return int(spec.action_space.n)
