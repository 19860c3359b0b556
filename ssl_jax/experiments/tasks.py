"""The tasks of pre-training: what is asked, which head answers, who chooses what is asked.

    spatial         in which order are the tiles of a picture?     permutations of the tiles
    temporal        in which order are the frames of a clip?       permutations of the frames
    rotation        by how many quarter turns was it turned?       4 classes
    context         where was the second patch from the first?     8 classes
    arrow_of_time   does the clip run forwards or backwards?       2 classes
    colorization    which colours has a grey picture?              261 classes, one for each cell of a map

A run has one or several of them on one encoder; each has its own head, permutation set and player. The
players of several tasks can be one policy. What colours there are nobody chooses: the task has no player, and
rare colours are weighted up instead.
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
import optax

from ssl_jax.networks import ENCODERS
from ssl_jax.networks.heads import (
    ColorHead,
    FrameOrderHead,
    JigsawHead,
    PuzzleNetwork,
    answer_sums,
    answered,
    cell_sums,
    margins,
)
from ssl_jax.pretext import (
    arrow_of_time,
    augment,
    colorization,
    context,
    frame_order,
    jigsaw,
    permutations,
    rotation,
)
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime.errors import InputError
from ssl_jax.selection import PLAYERS, Evaluation, Player, policy_gradient

OF_MODULES = ("parent", "name")  # arguments of every Flax module, which are no keys
JOINT = "joint"  # the player of each of the tasks that share a policy, and the name of its state


class Kind(NamedTuple):
    """What a task is made of.

    Attributes:
      pictures: what it is asked about: single ones ("image") or clips.
      pretext: module with `puzzle`.
      options: its dataclass in that module, section `puzzle`.
      head: section `head`.
      ordered: whether its classes are permutations of the parts.
      dense: whether each cell of the encoder's map has a class, which lies in the picture.
    """

    pictures: Literal["image", "clip"]
    pretext: ModuleType
    options: type
    head: type[nn.Module]
    ordered: bool
    dense: bool = False


KINDS = {
    "spatial": Kind("image", jigsaw, jigsaw.Jigsaw, JigsawHead, ordered=True),
    "temporal": Kind("clip", frame_order, frame_order.FrameOrder, FrameOrderHead, ordered=True),
    "rotation": Kind("image", rotation, rotation.Rotation, JigsawHead, ordered=False),
    "context": Kind("image", context, context.Context, JigsawHead, ordered=False),
    "arrow_of_time": Kind("clip", arrow_of_time, arrow_of_time.ArrowOfTime, JigsawHead, ordered=False),
    "colorization": Kind(
        "image", colorization, colorization.Colorization, ColorHead, ordered=False, dense=True
    ),
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
      adjust_logits: whether its loss knows how often the player draws each class, see `loss`.
      puzzle: options of the pretext module.
      orders: int32 [P, m], the permutation set; None where classes are no permutations.
      head: names the class.
      map_size: height and width of the encoder's map of a part, where its cells have the classes; else None.
      player: chooses the classes to train on; where cells have them its choice counts for nothing.
      player_name: among `PLAYERS`, or `JOINT`.
      selection_slice: what the player sees; None where cells have the classes.
      validation: what is reported.
    """

    name: str
    weight: float
    adjust_logits: bool
    puzzle: Any
    orders: np.ndarray | None
    head: nn.Module
    map_size: tuple[int, int] | None
    player: Player
    player_name: str
    selection_slice: Skill | None
    validation: Skill

    @property
    def pictures(self) -> str:
        """Name of the batches it is asked about, "image" or "clip"."""
        return KINDS[self.name].pictures

    @property
    def player_state(self) -> str:
        """Name of its player's state, which tasks that share a policy share."""
        return JOINT if self.player_name == JOINT else self.name

    @property
    def ordered(self) -> bool:
        """Whether its classes are permutations."""
        return self.orders is not None

    @property
    def dense(self) -> bool:
        """Whether each cell of the encoder's map has a class."""
        return self.map_size is not None

    @property
    def num_classes(self) -> int:
        """P."""
        return len(self.orders) if self.ordered else self.head.num_classes

    def parts(self, key: jax.Array, pictures: jax.Array, *, train: bool) -> jax.Array:
        """Pictures uint8 [B, H, W, 3] or clips [B, u, H, W, 3] -> float32 [B, m, h, w, 3] in true order."""
        return KINDS[self.name].pretext.puzzle(key, pictures, self.puzzle, train=train)

    def ask(
        self, key: jax.Array, pictures: jax.Array, index: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """What the network sees, [B, m, h, w, 3], and the classes to be named.

        These are `index`, int32 [B]; or, where cells have the classes, those of the pictures, [B, h', w'].
        """
        pretext = KINDS[self.name].pretext
        if self.dense:
            return pretext.puzzle(key, pictures, self.puzzle, map_size=self.map_size)
        if not self.ordered:
            return pretext.puzzle(key, pictures, index, self.puzzle, train=train), index
        return jigsaw.shuffle(self.parts(key, pictures, train=train), jnp.asarray(self.orders)[index]), index

    def see(self, pixels: jax.Array) -> jax.Array:
        """Pixels float [..., h, w, 3] in [0, 1] as the network is used to see them."""
        shown = colorization.lightness(pixels) if self.dense else pixels
        return augment.scale(shown, self.puzzle.normalize)

    def loss(self, logits: jax.Array, classes: jax.Array, prior: jax.Array) -> jax.Array:
        """Cross-entropy float32 [B]; over cells the mean, weighted by how rare their classes are.

        With `adjust_logits` the logarithm of the prior is added to the logits (Menon et al. 2021, "Long-tail
        learning via logit adjustment", Sec. 5), so that they need not learn it: to name what is drawn most
        is right more often than not before a network sees any order, and it would stay with that.

        Args:
          logits: float32 [B, P] or [B, h', w', P].
          classes: int32 [B] or [B, h', w'].
          prior: float32 [P], how often each class is that of a cell, or is drawn.
        """
        if self.dense:
            weights = colorization.class_weights(prior, self.puzzle.uniform)
            return colorization.loss(logits, classes, weights)
        if self.adjust_logits:
            logits = logits + jnp.log(jnp.maximum(prior, 1e-9))[None]  # what is never drawn stays finite
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes)


def make_all(
    sections: Mapping[str, Any], picture_size: tuple[int, int], encoder: nn.Module
) -> tuple[Task, ...]:
    """Reads and checks the sections of all tasks, and of the policy that some of them share.

    Args:
      sections: of the config: those named as in `KINDS`, and `selection`; None where there is none.
      picture_size: (H, W) of pictures and of frames, in pixels.
      encoder: of the run.

    Raises:
      InputError: there is no task; or see `make` and `share_policy`.
    """
    given = [name for name in KINDS if sections[name] is not None]
    if not given:
        raise InputError(f"the config has no task; give it a section {' or '.join(KINDS)}.")
    tasks = [make(name, sections[name], picture_size, encoder) for name in given]
    return share_policy(tasks, sections["selection"])


def make(name: str, section: Mapping[str, Any], picture_size: tuple[int, int], encoder: nn.Module) -> Task:
    """Reads and checks the section of a task; a player that is `JOINT` is left to `share_policy`, and None.

    Args:
      name: of the task and of its section.
      section: keys and values.
      picture_size: (H, W) of pictures and of frames, in pixels.
      encoder: of the run; the head computes in its dtype.

    Raises:
      InputError: an unknown task or key, a wrong type, or values that do not fit together.
    """
    kind = KINDS[name]

    def fields(
        *, weight: float = 1.0, adjust_logits: bool = False, puzzle: Mapping,
        permutations: Mapping | None = None, head: Mapping, selection: Mapping, validation: Mapping,
    ) -> dict:  # fmt: skip
        return locals()

    absent = [] if kind.ordered else ["permutations"]
    if kind.dense:
        absent += ["selection", "adjust_logits"]
    parts = fields(**dict.fromkeys(absent), **config_lib.unpack(section, fields, path=name, ignore=absent))
    if parts["weight"] <= 0:
        raise InputError(f"config.{name}.weight must be above 0, not {parts['weight']}.")
    selection = {"name": "uniform"} if kind.dense else dict(parts["selection"])
    parts["selection.slice"] = selection.pop("slice", {})

    dropout = (parts["head"] or {}).get("dropout", 0.0)
    if not 0 <= dropout < 1:
        raise InputError(f"config.{name}.head.dropout must lie in [0, 1), not {dropout}.")

    def build(part, builder, **known):
        path = f"{name}.{part}"
        return config_lib.build(builder, parts[part] or {}, path=path, ignore=OF_MODULES, **known)

    def skill(part):
        built = build(part, Skill, **({"classes_per_example": None} if kind.dense else {}))
        check_skill(f"config.{name}.{part}", built, num_classes)
        return built

    puzzle = build("puzzle", kind.options)
    with config_lib.errors_of(f"{name}.puzzle"):
        puzzle.check(picture_size)
    orders = build("permutations", permutations.make, length=puzzle.num_parts) if kind.ordered else None
    num_classes = len(orders) if kind.ordered else puzzle.num_classes
    return Task(
        name=name,
        weight=parts["weight"],
        adjust_logits=bool(parts["adjust_logits"]),  # None where cells have the classes
        puzzle=puzzle,
        orders=orders,
        head=build("head", kind.head, num_classes=num_classes, dtype=encoder.dtype),
        map_size=map_size(encoder, puzzle.part_size) if kind.dense else None,
        selection_slice=None if kind.dense else skill("selection.slice"),
        player=make_player(name, selection, num_classes, orders),
        player_name=selection["name"],
        validation=skill("validation"),
    )


def map_size(encoder: nn.Module, part_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an encoder's map of a part, of height and width `part_size` in pixels.

    Raises:
      InputError: the part is too small for the encoder.
    """
    part = jax.ShapeDtypeStruct((1, *part_size, 3), jnp.float32)
    see = lambda part: encoder.init_with_output(jax.random.key(0), part, train=False)[0]
    return jax.eval_shape(see, part).shape[1:3]


def make_player(
    name: str, section: Mapping[str, Any], num_classes: int, orders: np.ndarray | None
) -> Player | None:
    """The player that the section `selection` of a task describes; None where it is `JOINT`.

    Args:
      name: of the task.
      section: keys and values, without the slice.
      num_classes: P.
      orders: the permutation set [P, m]; None where classes are no permutations.

    Raises:
      InputError: an unknown player or key, a wrong type, or a player that needs permutations.
    """
    config_lib.check_known(f"config.{name}.selection.name", section.get("name"), [*PLAYERS, JOINT])
    if section["name"] == JOINT:
        for key in sorted(section.keys() - {"name"}):
            raise InputError(
                f"config.{name}.selection.{key} is not used, because config.{name}.selection.name={JOINT} "
                "is a policy that tasks share; its options are those of config.selection."
            )
        return None
    path = f"{name}.selection"
    player, options = choose(section, PLAYERS, path)
    asked = inspect.signature(player).parameters
    if "permutations" in asked and orders is None:
        raise InputError(
            f"config.{name}.selection.name={section['name']} orders permutations by their distance, and "
            f"the classes of {name} are none."
        )
    known = {"num_permutations": num_classes, "permutations": orders}
    known = {key: value for key, value in known.items() if key in asked}
    return config_lib.build(player, options, path=path, **known)


def share_policy(tasks: Sequence[Task], section: Mapping[str, Any] | None) -> tuple[Task, ...]:
    """The tasks, of which those whose player is `JOINT` now have the policy that they share.

    Args:
      tasks: of the run.
      section: `selection` of the config, options of that policy; None where there is none.

    Raises:
      InputError: one task alone would have it; or it has no options, unknown ones or ones that do not fit.
    """
    sharing = {task.name: task.num_classes for task in tasks if task.player_name == JOINT}
    if not sharing and section is None:
        return tuple(tasks)
    if not sharing:
        raise InputError(
            "config.selection is not used: it has the options of a policy that tasks share, and no "
            f"task has selection.name={JOINT}."
        )
    if len(sharing) == 1:
        (name,) = sharing
        raise InputError(
            f"config.{name}.selection.name={JOINT} is a policy that tasks share, and no other task has it; "
            f"give it to another one too, or choose a player for {name} alone."
        )
    if section is None:
        raise InputError(
            "config.selection is missing; it must have the options of the policy that "
            f"{' and '.join(sharing)} share, for their selection.name is {JOINT}."
        )
    sizes = tuple(sharing.values())
    made = config_lib.build(policy_gradient.make_joint, section, path="selection", num_permutations=sizes)
    players = dict(zip(sharing, made, strict=True))
    return tuple(dataclasses.replace(task, player=players.get(task.name, task.player)) for task in tasks)


def check_skill(path: str, skill: Skill, num_classes: int) -> None:
    """Raises InputError unless every class has an answer in each batch that is full."""
    each = num_classes if skill.classes_per_example is None else skill.classes_per_example
    if skill.examples < 1 or skill.batch_size < 1 or not 1 <= each <= num_classes:
        raise InputError(
            f"{path}.examples={skill.examples} and batch_size={skill.batch_size} must be at least 1, and "
            f"classes_per_example={skill.classes_per_example} from 1 to the {num_classes} classes."
        )
    name = "examples" if skill.examples < skill.batch_size else "batch_size"
    if getattr(skill, name) * each < num_classes:
        raise InputError(
            f"{path}.classes_per_example={skill.classes_per_example} times its {name}="
            f"{getattr(skill, name)} must be at least the {num_classes} classes, or some are never measured."
        )


def choose(section: Mapping[str, Any], known: Mapping[str, Any], path: str) -> tuple[Any, dict[str, Any]]:
    """The builder that a section names, and the section's other keys.

    Raises:
      InputError: an unknown name.
    """
    options = dict(section)
    name = options.pop("name", None)
    config_lib.check_known(f"config.{path}.name", name, known)
    return known[name], options


def build_encoder(section: Mapping[str, Any], dtype: Any) -> nn.Module:
    """The encoder that the section `encoder` of a config describes, which computes in a dtype.

    Raises:
      InputError: an unknown encoder or key, a wrong type, or options that do not fit.
    """
    encoder, options = choose(section, ENCODERS, "encoder")
    return config_lib.build(encoder, options, path="encoder", ignore=OF_MODULES, dtype=dtype)


def skill_sums(
    network: PuzzleNetwork, task: Task, skill: Skill, variables: Any, batch: Mapping[str, jax.Array], key
) -> dict[str, jax.Array]:
    """Answers of the network to one batch under every class of a task.

    For permutations exact, and nearly free of their number: parts are encoded once (see `JigsawHead`).
    Other tasks have few classes, which are asked for one after the other; or each cell has its own.

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
    if task.dense:
        inputs, classes = task.ask(key, pictures, None, train=False)
        lead = margins(network.apply(variables, inputs, task.name, train=False), classes)
        return cell_sums(lead, classes, task.num_classes, batch["mask"])
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
            inputs, _ = task.ask(key, pictures, label, train=False)
            return margins(network.apply(variables, inputs, task.name, train=False), label)

        lead = jax.lax.map(answer, index.T).T
    return answer_sums(lead, index, task.num_classes, batch["mask"])


def count_classes(task: Task, batch: Mapping[str, jax.Array], key: jax.Array) -> jax.Array:
    """How many cells of the maps of a batch have each class: float32 [P]; arguments as of `skill_sums`."""
    _, classes = task.ask(key, batch[task.pictures], None, train=False)
    nothing = jnp.zeros(classes.shape)
    return cell_sums(nothing, classes, task.num_classes, batch["mask"])["count"]


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
        return mean_answers(self.sums(variables))

    def sums(self, variables: Any) -> dict[str, jax.Array]:
        """What `skill_sums` gives, of all batches."""
        sums = [
            self._sums(variables, batch, jax.random.fold_in(self._key, number))
            for number, batch in enumerate(self._batches)
        ]
        return jax.tree.map(lambda *parts: sum(parts), *sums)


def mean_answers(sums: Mapping[str, jax.Array]) -> Evaluation:
    """How a class was answered on the mean, from `skill_sums`; 0 for one that was never asked for."""
    count = jnp.maximum(sums["count"], 1)
    return Evaluation(accuracy=sums["correct"] / count, ratio=sums["ratio"] / count)
