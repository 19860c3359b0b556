"""The tasks of pre-training: what is asked, which head answers, who chooses what is asked.

    spatial         in which order are the tiles of a picture?     permutations of the tiles
    temporal        in which order are the frames of a clip?       permutations of the frames
    rotation        by how many quarter turns was it turned?       4 classes
    context         where was the second patch from the first?     8 classes
    arrow_of_time   does the clip run forwards or backwards?       2 classes

A run has one or several of them on one encoder; each has its own head, permutation set and player.
"""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.networks.heads import (
    FrameOrderHead,
    JigsawHead,
    PuzzleNetwork,
    answer_sums,
    answered,
    margins,
)
from ssl_jax.pretext import arrow_of_time, context, frame_order, jigsaw, permutations, rotation
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime.errors import InputError
from ssl_jax.selection import PLAYERS, Evaluation, Player


class Kind(NamedTuple):
    """What a task is made of.

    Attributes:
      pictures: what it is asked about: single ones ("image") or clips.
      pretext: module with `puzzle`.
      options: its dataclass in that module, section `puzzle`.
      head: section `head`.
      ordered: whether its classes are permutations of the parts.
    """

    pictures: Literal["image", "clip"]
    pretext: ModuleType
    options: type
    head: type[nn.Module]
    ordered: bool


KINDS = {
    "spatial": Kind("image", jigsaw, jigsaw.Jigsaw, JigsawHead, ordered=True),
    "temporal": Kind("clip", frame_order, frame_order.FrameOrder, FrameOrderHead, ordered=True),
    "rotation": Kind("image", rotation, rotation.Rotation, JigsawHead, ordered=False),
    "context": Kind("image", context, context.Context, JigsawHead, ordered=False),
    "arrow_of_time": Kind("clip", arrow_of_time, arrow_of_time.ArrowOfTime, JigsawHead, ordered=False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skill:
    """Sections `selection.slice` and `validation`: how skill at every class is measured.

    Attributes:
      examples: pictures or clips, spread evenly over the split.
      batch_size: examples per call, over all devices.
      classes_per_example: how many of the classes each example answers, in turn; None: all. With 1000
        permutations a few hundred keep the cost flat, see `JigsawHead`.
    """

    examples: int
    batch_size: int = 64
    classes_per_example: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a run.

    Attributes:
      name: among `KINDS`.
      weight: of its loss.
      puzzle: options of the pretext module.
      orders: int32 [P, m], the permutation set; None where classes are no permutations.
      head: names the class.
      player: chooses the classes to train on.
      player_name: among `PLAYERS`.
      selection_slice: what the player sees.
      validation: what is reported.
    """

    name: str
    weight: float
    puzzle: Any
    orders: np.ndarray | None
    head: nn.Module
    player: Player
    player_name: str
    selection_slice: Skill
    validation: Skill

    @property
    def pictures(self) -> str:
        """Name of the batches it is asked about, "image" or "clip"."""
        return KINDS[self.name].pictures

    @property
    def ordered(self) -> bool:
        """Whether its classes are permutations."""
        return self.orders is not None

    @property
    def num_classes(self) -> int:
        """P."""
        return len(self.orders) if self.ordered else self.head.num_classes

    def parts(self, key: jax.Array, pictures: jax.Array, *, train: bool) -> jax.Array:
        """Pictures uint8 [B, H, W, 3] or clips [B, u, H, W, 3] -> float32 [B, m, h, w, 3] in true order."""
        return KINDS[self.name].pretext.puzzle(key, pictures, self.puzzle, train=train)

    def ask(self, key: jax.Array, pictures: jax.Array, index: jax.Array, *, train: bool) -> jax.Array:
        """What the network sees where the answers are classes `index`, int32 [B]: [B, m, h, w, 3]."""
        if not self.ordered:
            return KINDS[self.name].pretext.puzzle(key, pictures, index, self.puzzle, train=train)
        return jigsaw.shuffle(self.parts(key, pictures, train=train), jnp.asarray(self.orders)[index])


def make(name: str, section: Mapping[str, Any], picture_size: tuple[int, int], dtype: Any) -> Task:
    """Reads and checks the section of a task.

    Args:
      name: of the task and of its section.
      section: keys and values.
      picture_size: (H, W) of pictures and of frames, in pixels.
      dtype: of the head's computation.

    Raises:
      InputError: an unknown task or key, a wrong type, or values that do not fit together.
    """
    kind = KINDS[name]

    def fields(
        *, weight: float = 1.0, puzzle: Mapping, permutations: Mapping | None = None, head: Mapping,
        selection: Mapping, validation: Mapping,
    ) -> dict:  # fmt: skip
        return locals()

    ignored = () if kind.ordered else ("permutations",)
    parts = fields(**config_lib.unpack(section, fields, path=name, ignore=ignored))
    if parts["weight"] <= 0:
        raise InputError(f"config.{name}.weight must be above 0, not {parts['weight']}.")
    unpack = lambda part, builder, **kw: config_lib.unpack(
        parts[part] or {}, builder, path=f"{name}.{part}", **kw
    )
    puzzle = kind.options(**unpack("puzzle", kind.options))
    puzzle.check(picture_size)
    orders, num_classes = None, None
    if kind.ordered:
        orders = permutations.make(
            length=puzzle.num_parts, **unpack("permutations", permutations.make, ignore=("length",))
        )
    num_classes = len(orders) if kind.ordered else puzzle.num_classes
    ignored = ("num_classes", "dtype", "parent", "name")
    head = kind.head(num_classes=num_classes, dtype=dtype, **unpack("head", kind.head, ignore=ignored))
    selection = dict(parts["selection"])
    selection_slice = Skill(
        **config_lib.unpack(selection.pop("slice", {}), Skill, path=f"{name}.selection.slice")
    )
    known = {"num_permutations": num_classes}
    if orders is not None:
        known["permutations"] = orders
    player, options = choose(
        selection, PLAYERS, f"{name}.selection", ignore=("num_permutations", "permutations")
    )
    asked = inspect.signature(player).parameters
    if "permutations" in asked and orders is None:
        raise InputError(
            f"config.{name}.selection.name={selection['name']} orders permutations by their distance, and "
            f"the classes of {name} are none."
        )
    validation = Skill(**unpack("validation", Skill))
    for path, skill in (("selection.slice", selection_slice), ("validation", validation)):
        if skill.batch_size * (skill.classes_per_example or num_classes) < num_classes:
            raise InputError(
                f"config.{name}.{path}.classes_per_example={skill.classes_per_example} times its batch_size="
                f"{skill.batch_size} must be at least the {num_classes} classes, or some have no answer."
            )
    return Task(
        name=name,
        weight=parts["weight"],
        puzzle=puzzle,
        orders=orders,
        head=head,
        player=player(**options, **{name: value for name, value in known.items() if name in asked}),
        player_name=selection["name"],
        selection_slice=selection_slice,
        validation=validation,
    )


def choose(
    section: Mapping[str, Any], known: Mapping[str, Any], path: str, *, ignore: Sequence[str]
) -> tuple[Any, dict[str, Any]]:
    """The builder that a section names, and its arguments: the section's other keys.

    Raises:
      InputError: an unknown name or key, or a wrong type.
    """
    options = dict(section)
    name = options.pop("name", None)
    config_lib.check_known(f"config.{path}.name", name, known)
    return known[name], config_lib.unpack(options, known[name], path=path, ignore=ignore)


def skill_sums(
    network: PuzzleNetwork, task: Task, skill: Skill, variables: Any, batch: Mapping[str, jax.Array], key
) -> dict[str, jax.Array]:
    """Answers of the network to one batch under every class of a task.

    For permutations exact, and nearly free of their number: parts are encoded once (see `JigsawHead`).
    Other tasks have few classes, which are asked for one after the other.

    Args:
      network: of the run.
      task: whose skill it is.
      skill: how many classes each example answers.
      variables: of the network.
      batch: {task.pictures: uint8 [B, ...], "mask": bool [B]}; masked rows count for nothing.
      key: of windows, gaps and so on; the same key gives the same puzzles.

    Returns:
      float32 [P] sums over the batch: "correct", "ratio" and "count", see `heads.answer_sums`.
    """
    pictures = batch[task.pictures]
    index = answered(len(pictures), task.num_classes, skill.classes_per_example)
    if task.ordered:
        lead = network.apply(
            variables,
            task.parts(key, pictures, train=False),
            task.name,
            jnp.asarray(task.orders),
            index,
            method="permutation_margins",
        )
    else:

        def answer(label):
            inputs = task.ask(key, pictures, label, train=False)
            return margins(network.apply(variables, inputs, task.name, train=False), label)

        lead = jax.lax.map(answer, index.T).T
    return answer_sums(lead, index, task.num_classes, batch["mask"])


class SkillMeter:
    """Measures skill at every class of a task on fixed batches of pictures, held on the devices."""

    def __init__(
        self,
        network: PuzzleNetwork,
        task: Task,
        skill: Skill,
        batches: Sequence[Mapping[str, jax.Array]],
        seed: int,
    ):
        self._key = jax.random.key(seed)
        self._batches = batches
        self._sums = jax.jit(functools.partial(skill_sums, network, task, skill))

    def __call__(self, variables: Any) -> Evaluation:
        """The same pictures, windows and gaps at every call."""
        sums = [
            self._sums(variables, batch, jax.random.fold_in(self._key, number))
            for number, batch in enumerate(self._batches)
        ]
        total = jax.tree.map(lambda *parts: sum(parts), *sums)
        count = jnp.maximum(total["count"], 1)
        return Evaluation(accuracy=total["correct"] / count, ratio=total["ratio"] / count)
