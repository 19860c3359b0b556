"""Permutation sets: the classes of the puzzles, chosen to lie far apart.

A permutation p of m elements is an int32 array [m]; applying it shows element p[i] at position i:
`shuffled[i] = items[p[i]]`. A set is an array [N, m] of distinct permutations, and the class of a
shuffled sample is the row of its permutation. The Hamming distance of two permutations is the
number of positions in which they differ; two distinct permutations differ in at least 2.

Two ways to choose a set (`make`):

- `greedy`: Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw
  Puzzles", ECCV 2016 (arXiv 1603.09246), the maximal Hamming distance permutation set; here with
  the minimum distance before the mean, since maximising the mean alone lets near-twins in.
- `code`: permutation groups with a provable minimum distance. Two members g, h of a group differ
  where h^-1 g moves a point, so the minimum distance is the fewest points which any member but the
  identity moves. A sharply k-transitive group has minimum distance m - k + 1, and no larger set has
  (Blake, Cohen and Deza, "Coding with Permutations", Information and Control 43, 1979; semilinear
  groups: Bereg et al., "Constructing Permutation Arrays from Groups", arXiv 1511.04494).

All of this is NumPy on the host, at configuration time.
"""

import difflib
import functools
import math
import os
import tokenize
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssl_jax.runtime import files
from ssl_jax.runtime.errors import InputError
from ssl_jax.runtime.paths import UserPath

METHODS = ("greedy", "code")
# Up to this length the greedy choice sees every permutation, and `code` falls back to the
# alternating and symmetric groups (10! = 3,628,800).
MAX_ENUMERATED_LENGTH = 10
# Beyond it, the greedy choice sees this many random permutations.
POOL_SIZE = 2**18


def make(
    *,
    num: int,
    length: int,
    method: str = "greedy",
    seed: int = 0,
    path: UserPath | None = None,
    index_base: int | None = None,
    include_identity: bool = False,
    merge_reversed: bool = False,
) -> np.ndarray:
    """Returns a permutation set, int32 [num, length], zero-based; the same for the same arguments.

    With the same seed a smaller set is the beginning of a larger one (for `code`: of a larger one
    from the same group).

    Args:
        num: Size of the set, at least 2.
        length: Number of elements to permute (9 tiles, u frames), at least 2.
        method: "greedy": start from a random permutation and repeatedly add the candidate with the
            largest (minimum, then mean) distance to those chosen; ties go to the candidate that
            comes first in a random order. Candidates are all permutations up to length 10, and
            2**18 random ones beyond. "code": members, in random order, of the group with the
            largest minimum distance among those with at least `num` members. On m = length points
            these are C_m (m members, distance m); AGL(1, q) (q(q-1) members, distance q-1) and
            AGammaL(1, q) for q = m a prime power; PGL(2, q) (q(q^2-1), q-1) and PGammaL(2, q) for
            q = m - 1 a prime power; and up to length 10 A_m (m!/2, 3) and S_m (m!, 2).
        seed: Seed of every random choice, at least 0.
        path: A `.npy` file (see `load`) whose first `num` rows are the set instead; `method` and
            `seed` then choose nothing.
        index_base: The smallest entry of that file, 0 or 1; given exactly if `path` is.
        include_identity: True: row 0 is the identity (the greedy choice starts from it). False: no
            row is. A group holds the identity, so a code without it is a coset of the group by a
            random permutation, which has the group's size and distances; S_m, which has no coset,
            gives its m! - 1 other members. A file keeps its rows as they are: with False it is an
            error if the identity is among those used.
        merge_reversed: For frames in time, with `greedy`: of a permutation and its reverse only the one
            that begins with the smaller of its ends can be in the set. What looks the same played
            backwards has no direction to be named (Lee et al. 2017, Sec. 3.3).

    Raises:
        InputError: If there is no such set, or the file holds none.
    """
    _check_request(num, length, method, seed, include_identity, merge_reversed)
    if merge_reversed and (path is not None or method != "greedy"):
        raise InputError(
            "merge_reversed=True needs method='greedy' and no path: other sets are what they are"
        )
    if path is not None:
        return _from_file(path, index_base, num, length, include_identity)
    if index_base is not None:
        raise InputError(f"index_base={index_base} describes a file, so it needs a path as well")
    rng = np.random.default_rng(seed)
    if method == "greedy":
        chosen = _choose_greedily(num, length, rng, include_identity, merge_reversed)
    else:
        chosen = _choose_from_code(num, length, rng, include_identity)
    return np.ascontiguousarray(chosen, dtype=np.int32)


def load(path: str | os.PathLike, *, index_base: int) -> np.ndarray:
    """Reads a permutation set from a `.npy` file of integers [N, m]; nothing is unpickled.

    Args:
        path: The file.
        index_base: The smallest entry of every row: 0, or 1 for sets written by one-based programs.
            It is never guessed.

    Returns:
        int32 [N, m], zero-based.

    Raises:
        InputError: If the file cannot be read or its rows are not distinct permutations.
    """
    if index_base not in (0, 1):
        raise InputError(
            f"index_base={index_base} does not say how {path} counts; it must be 0 or 1, the "
            "smallest entry of its rows"
        )
    try:
        with open(path, "rb") as file:
            permutations = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot read the permutation set {path}: {error.strerror}") from error
    except (ValueError, MemoryError, tokenize.TokenError) as error:  # TokenError: a torn header
        raise InputError(f"{path} is not a whole .npy file of integers [number, length]: {error}") from error
    _check_set(permutations, index_base, source=str(path))
    return (permutations - index_base).astype(np.int32)


def save(path: str | os.PathLike, permutations: np.ndarray) -> None:
    """Writes a set, int [N, m], as a zero-based int32 `.npy` file: `load(path, index_base=0)`.

    The file appears whole or not at all; one that is there already is replaced only then.

    Raises:
        InputError: If the rows are not distinct permutations, or the file cannot be written.
    """
    permutations = np.asarray(permutations)
    _check_set(permutations, 0, source=f"the set for {path}")
    try:
        with files.writing(path) as file:
            np.save(file, permutations.astype(np.int32), allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot write the permutation set {path}: {error}") from error


def apply(permutations: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Shuffles `items`, [m, ...], by one permutation [m] or by each of a set [N, m].

    Returns:
        [m, ...] or [N, m, ...], with `shuffled[..., i] = items[permutations[..., i]]`.
    """
    return np.asarray(items)[np.asarray(permutations)]


def invert(permutations: np.ndarray) -> np.ndarray:
    """Returns the inverses, int32, of one permutation [m] or of each of a set [N, m].

    `apply(invert(p), apply(p, items))` is `items`.
    """
    return np.argsort(permutations, axis=-1).astype(np.int32)


def hamming_distances(permutations: np.ndarray) -> np.ndarray:
    """Returns the number of positions in which each pair of a set [N, m] differs, int32 [N, N]."""
    columns = np.ascontiguousarray(np.transpose(permutations))
    return np.stack([_distances_to(columns, row) for row in columns.T]).astype(np.int32)


def distance_statistics(permutations: np.ndarray) -> tuple[int, float]:
    """Returns the (minimum, mean) Hamming distance over the pairs of distinct rows of a set [N, m].

    Takes memory for one row of distances at a time.

    Raises:
        InputError: If N < 2: there is no pair.
    """
    num, length = np.shape(permutations)
    if num < 2:
        raise InputError(f"distances need at least 2 permutations, and the set has {num}")
    columns = np.ascontiguousarray(np.transpose(permutations))
    minimum, total = length, 0
    for i in range(num - 1):
        distances = _distances_to(columns[:, i + 1 :], columns[:, i])
        minimum = min(minimum, int(distances.min()))
        total += int(distances.sum())
    return minimum, total / math.comb(num, 2)


def _distances_to(columns: np.ndarray, permutation: np.ndarray) -> np.ndarray:
    """Distances [N] of the permutations in `columns`, [m, N], to one permutation [m].

    Element i of all permutations lies together in memory, so that each comparison is one pass over
    N small integers.
    """
    distances = np.zeros(columns.shape[1], np.min_scalar_type(len(columns)))
    for column, element in zip(columns, permutation, strict=True):
        distances += column != element
    return distances


def _check_request(
    num: int, length: int, method: str, seed: int, include_identity: bool, merge_reversed: bool
) -> None:
    """Raises InputError for what no set of `make` can satisfy."""
    if num < 2:
        raise InputError(f"num={num} permutations make no puzzle; at least 2 are needed")
    if length < 2:
        raise InputError(f"length={length} leaves nothing to permute; at least 2 are needed")
    if seed < 0:
        raise InputError(f"seed={seed} of the permutation set is negative; it must be at least 0")
    if method not in METHODS:
        closest = difflib.get_close_matches(method, METHODS, n=1, cutoff=0.0)[0]
        raise InputError(
            f"method={method!r} chooses no permutations; the closest known is {closest!r} "
            f"(known: {', '.join(METHODS)})"
        )
    available = math.factorial(length) // (1 + merge_reversed) - (not include_identity)
    if num > available:
        raise InputError(
            f"num={num} is too many: there are {available} permutations of {length} elements "
            f"{'with' if include_identity else 'without'} the identity"
            f"{' and with reversed ones merged' if merge_reversed else ''}"
        )


def _check_set(permutations: np.ndarray, index_base: int, source: str) -> None:
    """Raises InputError unless the rows, [N, m], are distinct permutations from `index_base` on."""
    if permutations.dtype.kind not in "iu":
        raise InputError(f"{source} holds {permutations.dtype}; permutations are integers")
    if permutations.ndim != 2 or permutations.shape[0] < 1 or permutations.shape[1] < 2:
        raise InputError(
            f"{source} has shape {permutations.shape}; a permutation set has shape "
            "[number, length] with a length of at least 2"
        )
    length = permutations.shape[1]
    elements = np.sort(permutations, axis=1)
    wrong = (elements != np.arange(length) + index_base).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        other_base = 1 - index_base
        hint = ""
        if (elements[row] == np.arange(length) + other_base).all():
            hint = f"; it is one with index_base={other_base}"
        raise InputError(
            f"row {row} (from 0) of {source} is {permutations[row].tolist()}, which is no "
            f"permutation of {index_base} to {length - 1 + index_base}{hint}"
        )
    _, first, inverse = np.unique(permutations, axis=0, return_index=True, return_inverse=True)
    original = first[inverse.reshape(-1)]  # NumPy 2.0 alone returns [N, 1]
    repeated = original != np.arange(len(permutations))
    if repeated.any():
        row = int(np.argmax(repeated))
        raise InputError(
            f"row {row} (from 0) of {source} repeats row {original[row]}; the permutations of a "
            "set must be distinct"
        )


def _from_file(
    path: str, index_base: int | None, num: int, length: int, include_identity: bool
) -> np.ndarray:
    """The first `num` rows of the set in a file."""
    permutations = load(path, index_base=index_base)
    rows, columns = permutations.shape
    if columns != length:
        raise InputError(f"{path} permutes {columns} elements, but length={length} was asked for")
    if rows < num:
        raise InputError(f"{path} holds {rows} permutations, but num={num} were asked for")
    permutations = permutations[:num]
    identity = (permutations == np.arange(length)).all(axis=1)
    if identity.any() and not include_identity:
        raise InputError(
            f"row {int(np.argmax(identity))} (from 0) of {path} is the identity, which is a member "
            "only with include_identity=True"
        )
    return permutations


def _choose_greedily(
    num: int, length: int, rng: np.random.Generator, include_identity: bool, merge_reversed: bool
) -> np.ndarray:
    """The greedy set of `make`, [num, length].

    Each candidate's minimum and total distance to those chosen are kept, so that every addition
    costs one comparison with all candidates.
    """
    identity = np.arange(length, dtype=np.min_scalar_type(length))[:, None]
    candidates = _candidates(length, rng)
    # Compress and take keep each row together in memory; indexing by an array would not.
    allowed = (candidates != identity).any(axis=0)
    if merge_reversed:
        allowed &= candidates[0] < candidates[-1]
    candidates = np.compress(allowed, candidates, axis=1)
    # The random order decides the start and the ties, of which argmax takes the first.
    candidates = np.take(candidates, rng.permutation(candidates.shape[1]), axis=1)
    if include_identity:
        candidates = np.concatenate([identity, candidates], axis=1)
    if num > candidates.shape[1]:
        raise InputError(
            f"num={num} is too many: at length={length} the greedy choice is among "
            f"{candidates.shape[1]} random permutations"
        )
    minimum = np.full(candidates.shape[1], length, candidates.dtype)
    total = np.zeros(candidates.shape[1], np.int32)
    chosen = [0]
    for _ in range(num - 1):
        distances = _distances_to(candidates, candidates[:, chosen[-1]])
        np.minimum(minimum, distances, out=minimum)
        total += distances
        farthest = np.flatnonzero(minimum == minimum.max())
        chosen.append(farthest[np.argmax(total[farthest])])
    return candidates[:, chosen].T


def _candidates(length: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct permutations for the greedy choice, [length, N]: all, or POOL_SIZE random ones."""
    if length <= MAX_ENUMERATED_LENGTH:
        return _all_permutations(length)
    ordered = np.arange(length, dtype=np.min_scalar_type(length))
    pool = rng.permuted(np.tile(ordered, (POOL_SIZE, 1)), axis=1)
    return np.ascontiguousarray(np.unique(pool, axis=0).T)


def _all_permutations(length: int) -> np.ndarray:
    """All permutations in lexicographic order, [length, length!]."""
    columns = np.zeros((1, 1), np.min_scalar_type(length))
    for n in range(2, length + 1):
        blocks = []
        for first in range(n):
            # After the first element come all orders of the others, renumbered to leave it out.
            head = np.full((1, columns.shape[1]), first, columns.dtype)
            blocks.append(np.concatenate([head, columns + (columns >= first)]))
        columns = np.concatenate(blocks, axis=1)
    return columns


class _Code(NamedTuple):
    """A permutation group: its minimum distance, its size, and its members, identity in row 0."""

    distance: int
    size: int
    members: Callable[[], np.ndarray]


def _choose_from_code(num: int, length: int, rng: np.random.Generator, include_identity: bool) -> np.ndarray:
    """The code of `make`, [num, length]."""
    everything = math.factorial(length)

    def available(code: _Code) -> int:
        return code.size - (code.size == everything and not include_identity)

    sufficient = [code for code in _codes(length) if available(code) >= num]
    if not sufficient:
        largest = max(_codes(length), key=lambda code: code.size)
        raise InputError(
            f"num={num} is too many for method='code': the largest code of length={length} has "
            f"{largest.size} permutations (minimum distance {largest.distance}); "
            "method='greedy' goes further"
        )
    # Of equal distance the larger, so that more requests are subsets of one group.
    code = max(sufficient, key=lambda code: (code.distance, code.size))
    group = code.members()
    if not include_identity and code.size < everything:
        outside = rng.permutation(length)
        while (group == outside).all(axis=1).any():
            outside = rng.permutation(length)
        return outside[group[rng.permutation(len(group))[:num]]]
    others = rng.permutation(np.arange(1, len(group)))
    rows = np.append(0, others) if include_identity else others
    return group[rows[:num]]


def _codes(length: int) -> list[_Code]:
    """The groups on `length` points with their distances and sizes; see `make`."""
    codes = [_Code(length, length, functools.partial(_cyclic_group, length))]
    for q, projective in ((length, False), (length - 1, True)):
        if q < 2:
            continue
        p = _smallest_factor(q)
        k = round(math.log(q, p))
        if p**k != q:
            continue
        size = q * (q - 1) * (q + 1 if projective else 1)
        codes.append(_Code(q - 1, size, functools.partial(_linear_group, p, k, projective, False)))
        if k > 1:
            # A semilinear map fixes at most the line over the largest proper subfield.
            subfield = p ** (k // _smallest_factor(k))
            members = functools.partial(_linear_group, p, k, projective, True)
            codes.append(_Code(q - subfield, size * k, members))
    if length <= MAX_ENUMERATED_LENGTH:
        everything = math.factorial(length)
        codes.append(_Code(2, everything, lambda: _all_permutations(length).T))
        if length > 2:
            codes.append(_Code(3, everything // 2, lambda: _alternating_group(length)))
    return codes


def _smallest_factor(n: int) -> int:
    """The smallest prime that divides n > 1."""
    return next(d for d in range(2, n + 1) if n % d == 0)


def _cyclic_group(length: int) -> np.ndarray:
    """The cyclic shifts, [length, length]."""
    return (np.arange(length)[:, None] + np.arange(length)) % length


def _alternating_group(length: int) -> np.ndarray:
    """The permutations with an even number of inversions, [length! / 2, length]."""
    columns = _all_permutations(length)
    odd = np.zeros(columns.shape[1], bool)
    for i in range(length):
        for j in range(i + 1, length):
            odd ^= columns[i] > columns[j]
    return columns[:, ~odd].T


def _linear_group(p: int, k: int, projective: bool, semilinear: bool) -> np.ndarray:
    """AGL(1, q) on the q = p**k elements of GF(q), or PGL(2, q) on them and infinity, point q.

    With `semilinear`, AGammaL(1, q) or PGammaL(2, q): each map after each power of x -> x**p.
    """
    add, multiply = _finite_field(p, k)
    q = p**k
    group = add[:, multiply[1:]].reshape(-1, q)  # x -> a x + b, for all b and a != 0
    frobenius = np.arange(q)  # x -> x**p
    for _ in range(p - 1):
        frobenius = multiply[frobenius, np.arange(q)]
    if projective:
        group = np.pad(group, ((0, 0), (0, 1)), constant_values=q)
        frobenius = np.append(frobenius, q)
        inverse = np.append(np.argmax(multiply == 1, axis=1), 0)
        inverse[0] = q
        # The maps above fix infinity; before them, 1 / (x + c) sends the point -c there.
        shifted = np.pad(add, ((0, 0), (0, 1)), constant_values=q)
        group = group[:, np.vstack([np.arange(q + 1), inverse[shifted]])].reshape(-1, q + 1)
    if semilinear:
        powers = [np.arange(len(frobenius))]
        for _ in range(k - 1):
            powers.append(frobenius[powers[-1]])
        group = group[:, np.stack(powers)].reshape(-1, len(frobenius))
    return group


def _finite_field(p: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Addition and multiplication tables of GF(q), int [q, q], for q = p**k.

    Element e is the polynomial over GF(p) whose coefficients are the digits of e in base p, modulo
    x**k - r for the first r of lower degree that makes x a generator of the nonzero elements.
    """
    q = p**k
    place = p ** np.arange(k)
    digits = np.arange(q)[:, None] // place % p
    add = (digits[:, None] + digits) % p @ place
    for remainder in digits:
        lifted = np.pad(digits[:, :-1], ((0, 0), (1, 0)))
        times_x = (lifted + digits[:, -1:] * remainder) % p @ place
        powers = [1]
        for _ in range(q - 2):
            powers.append(times_x[powers[-1]])
        if len(set(powers) - {0}) == q - 1:
            break
    multiply = np.zeros((q, q), int)
    exponents = np.arange(q - 1)
    multiply[np.ix_(powers, powers)] = np.array(powers)[(exponents[:, None] + exponents) % (q - 1)]
    return add, multiply
