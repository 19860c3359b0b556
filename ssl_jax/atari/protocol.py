"""What makes an Atari score comparable: one record, stored with every score.

Machado et al., "Revisiting the Arcade Learning Environment", JAIR 2018, Sections 3 to 5, show how far the
same agent's score moves with each of these choices.
"""

import dataclasses
import re

import numpy as np

from ssl_jax.runtime.config import check_known, closest
from ssl_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the game is played, learned from and scored.

    Frames are emulator frames, 60 in a second of play; an agent step is `frame_skip` of them.

    Attributes:
      game: one of `games()`. An environment's id, such as `ALE/Pong-v5`, is refused: it stands for a frame
        skip and sticky actions as well, which are attributes here.
      frame_skip: emulator frames an action is held; the agent sees the maximum over the last two.
      sticky_actions: probability, at every emulator frame, that the emulator ignores the new action and
        repeats the last one (Machado et al. 2018, Sec. 5: 0.25; Mnih et al. 2015: 0).
      life_loss: a lost life has discount 0, for learning only: the game goes on, and so does the score.
      noop_max: an episode starts after 1 to this many frames without action (Mnih et al. 2015: 30).
      max_episode_frames: the episode is truncated, which is no termination, after this many frames; those
        before the agent's first action do not count.
      full_action_space: all 18 actions, not only those that the game has a use for.
      fire_on_reset: the environment presses FIRE, in the place of one no-op, where the game has it.
      frame_size: (height, width) of a frame in pixels, in grey.
      stack: frames that an observation shows.
      reward_clip: learn from rewards clipped to [-1, 1]; scores are never clipped.
      evaluation_epsilon: probability of a random action when a score is taken.
      evaluation_episodes: number of full episodes over which a score is the mean.
      frames_trained: emulator frames played before the score was taken, of all environments together.
    """

    game: str
    frame_skip: int = 4
    sticky_actions: float = 0.0
    life_loss: bool = False
    noop_max: int = 30
    max_episode_frames: int = 108_000
    full_action_space: bool = False
    fire_on_reset: bool = False
    frame_size: tuple[int, int] = (84, 84)
    stack: int = 4
    reward_clip: bool = True
    evaluation_epsilon: float = 0.0
    evaluation_episodes: int = 100
    frames_trained: int = 0

    def __post_init__(self):
        _check_game(self.game)
        least = {"frame_skip": 1, "noop_max": 1, "stack": 1, "evaluation_episodes": 1, "frames_trained": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"{name} must be at least {smallest}, not {getattr(self, name)}")
        for name in ("sticky_actions", "evaluation_epsilon"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be a probability, from 0 to 1, not {getattr(self, name)}")
        if len(self.frame_size) != 2 or min(self.frame_size) < 1:
            raise InputError(
                f"frame_size must be height and width in pixels, such as (84, 84), not {self.frame_size}"
            )
        if self.max_episode_frames < self.frame_skip:
            raise InputError(
                f"max_episode_frames must be at least one agent step of {self.frame_skip} emulator frames, "
                f"not {self.max_episode_frames}"
            )

    @property
    def max_episode_steps(self) -> int:
        """The longest an episode can be, in agent steps."""
        return self.max_episode_frames // self.frame_skip


def games() -> list[str]:
    """Names of the games whose ROM comes with envpool, such as `MsPacman`, in alphabetical order."""
    from envpool.atari import registration  # Here, so that importing the module does not load envpool.

    return ["".join(map(str.capitalize, game.split("_"))) for game in registration.atari_game_list]


def _check_game(game: str) -> None:
    """Raises InputError unless it is the name of a game; of an environment's id it says which is meant."""
    known = games()
    if game not in known and re.search(r"/|-v\d+$", game):
        close = closest(game, known)
        raise InputError(
            f"game={game!r} is the id of an environment, whose frame skip and sticky actions "
            f"would not be used; give the name of the game{f', {close!r},' if close else ''} and set "
            "frame_skip and sticky_actions."
        )
    check_known("Atari game", game, known)


def learning_reward(protocol: Protocol, reward: np.ndarray) -> np.ndarray:
    """The reward to learn from: float32 of any shape, clipped to [-1, 1] if the protocol says so.

    Mnih et al. 2015, Methods: one learning rate then fits all games.
    """
    return np.clip(reward, -1, 1) if protocol.reward_clip else reward


def differences(protocol: Protocol, other: Protocol) -> dict[str, tuple[object, object]]:
    """Names what keeps two scores from being comparable.

    Returns:
      Attribute -> (its value in `protocol`, its value in `other`), for those that differ.
    """
    both = {
        field.name: (getattr(protocol, field.name), getattr(other, field.name))
        for field in dataclasses.fields(Protocol)
    }
    return {name: values for name, values in both.items() if values[0] != values[1]}
