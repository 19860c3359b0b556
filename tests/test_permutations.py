"""Permutation sets: meaning by hand and by naive oracles, the groups, files, and bad requests."""

import io
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ssl_jax.pretext import permutations
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.fast


def naive_distance(p, q):
    return sum(a != b for a, b in zip(p, q, strict=True))


def as_tuples(permutation_set):
    return {tuple(row) for row in permutation_set.tolist()}


def assert_is_set(permutation_set, num, length):
    assert permutation_set.dtype == np.int32
    assert permutation_set.shape == (num, length)
    assert (np.sort(permutation_set, axis=1) == np.arange(length)).all()
    assert len(as_tuples(permutation_set)) == num


@st.composite
def permutation_sets(draw):
    """Sets of 2 to 12 distinct permutations of 2 to 7 elements."""
    length = draw(st.integers(2, 7))
    one = st.permutations(range(length)).map(tuple)
    rows = draw(st.lists(one, min_size=2, max_size=12 if length > 3 else 2, unique=True))
    return np.array(rows, np.int32)


# --- apply, invert, distances --------------------------------------------------------------------


def test_apply_shows_item_p_i_at_position_i():
    np.testing.assert_array_equal(
        permutations.apply(np.array([2, 0, 1]), np.array([10, 11, 12])), [12, 10, 11]
    )
    tiles = np.arange(6).reshape(3, 2)
    shuffled = permutations.apply(np.array([[0, 1, 2], [2, 1, 0]]), tiles)
    np.testing.assert_array_equal(shuffled, [[[0, 1], [2, 3], [4, 5]], [[4, 5], [2, 3], [0, 1]]])


def test_invert_by_hand():
    inverse = permutations.invert(np.array([[2, 0, 1], [0, 2, 1]]))
    np.testing.assert_array_equal(inverse, [[1, 2, 0], [0, 2, 1]])
    assert inverse.dtype == np.int32


@hypothesis.settings(max_examples=50)
@hypothesis.given(permutation_sets())
def test_apply_then_invert_is_the_identity(permutation_set):
    items = np.random.default_rng(0).normal(size=(permutation_set.shape[1], 2))
    for shuffled, inverse in zip(
        permutations.apply(permutation_set, items),
        permutations.invert(permutation_set),
        strict=True,
    ):
        np.testing.assert_array_equal(permutations.apply(inverse, shuffled), items)
    np.testing.assert_array_equal(permutations.invert(permutations.invert(permutation_set)), permutation_set)


def test_distances_by_hand():
    permutation_set = np.array([[0, 1, 2, 3], [1, 0, 2, 3], [1, 2, 3, 0]])
    distances = permutations.hamming_distances(permutation_set)
    np.testing.assert_array_equal(distances, [[0, 2, 4], [2, 0, 3], [4, 3, 0]])
    assert distances.dtype == np.int32
    assert permutations.distance_statistics(permutation_set) == (2, 3.0)


@hypothesis.settings(max_examples=50)
@hypothesis.given(permutation_sets())
def test_distances_equal_the_naive_ones(permutation_set):
    pairs = itertools.combinations(permutation_set, 2)
    naive = [naive_distance(p, q) for p, q in pairs]
    distances = permutations.hamming_distances(permutation_set)
    np.testing.assert_array_equal(distances, distances.T)
    np.testing.assert_array_equal(distances[np.triu_indices(len(distances), 1)], naive)
    minimum, mean = permutations.distance_statistics(permutation_set)
    assert minimum == min(naive)
    assert mean == pytest.approx(np.mean(naive))


def test_statistics_of_all_permutations_match_theory():
    everything = permutations.make(num=120, length=5, include_identity=True)
    minimum, mean = permutations.distance_statistics(everything)
    assert minimum == 2
    # A random permutation fixes one point on average: 5 - 1 over all ordered pairs, self included.
    assert mean == pytest.approx(4 * 120 / 119)


def test_statistics_need_a_pair():
    with pytest.raises(InputError, match="at least 2"):
        permutations.distance_statistics(np.arange(9)[None])


# --- the greedy choice ---------------------------------------------------------------------------


@pytest.mark.parametrize("include_identity", [False, True])
@pytest.mark.parametrize(("num", "length"), [(23, 4), (40, 5)])
def test_greedy_adds_the_farthest_candidate(num, length, include_identity):
    chosen = permutations.make(num=num, length=length, seed=3, include_identity=include_identity).tolist()
    candidates = [list(p) for p in itertools.permutations(range(length))]
    if not include_identity:
        candidates.remove(list(range(length)))

    def rank(candidate, so_far):
        distances = [naive_distance(candidate, other) for other in so_far]
        return min(distances), sum(distances)

    for n in range(1, num):
        best = max(rank(c, chosen[:n]) for c in candidates if c not in chosen[:n])
        assert rank(chosen[n], chosen[:n]) == best


def test_greedy_for_nine_tiles_beats_random_permutations():
    chosen = permutations.make(num=1000, length=9)
    assert_is_set(chosen, 1000, 9)
    minimum, _ = permutations.distance_statistics(chosen)
    assert minimum >= 5
    rng = np.random.default_rng(0)
    random = np.stack([rng.permutation(9) for _ in range(1000)])
    assert minimum > permutations.distance_statistics(random)[0]
    # The first hundred are the set of a hundred, and farther apart.
    np.testing.assert_array_equal(permutations.make(num=100, length=9), chosen[:100])
    assert permutations.distance_statistics(chosen[:100])[0] >= 6


def test_greedy_beyond_ten_elements_chooses_from_a_random_pool():
    chosen = permutations.make(num=20, length=12, seed=1)
    assert_is_set(chosen, 20, 12)
    assert permutations.distance_statistics(chosen)[0] >= 10
    with_identity = permutations.make(num=20, length=12, seed=1, include_identity=True)
    np.testing.assert_array_equal(with_identity[0], np.arange(12))
    with pytest.raises(InputError, match=r"num=300000 is too many: .* 26\d{4} random"):
        permutations.make(num=300_000, length=12)


# --- codes ---------------------------------------------------------------------------------------

GROUPS = {  # (size, length): minimum distance
    (9, 9): 9,  # C_9
    (72, 9): 8,  # AGL(1, 9)
    (504, 9): 7,  # PGL(2, 8)
    (1512, 9): 6,  # PGammaL(2, 8)
    (56, 8): 7,  # AGL(1, 8)
    (336, 8): 6,  # PGL(2, 7)
    (12, 4): 3,  # AGL(1, 4) = A_4
    (24, 4): 2,  # S_4
    (20, 5): 4,  # AGL(1, 5)
    (60, 5): 3,  # PGL(2, 4) = A_5
    (6, 6): 6,  # C_6; no field has 6 elements
    (120, 6): 4,  # PGL(2, 5)
    (360, 6): 3,  # A_6
    (720, 10): 8,  # PGL(2, 9)
    (1440, 10): 6,  # PGammaL(2, 9)
    (240, 16): 15,  # AGL(1, 16)
    (960, 16): 12,  # AGammaL(1, 16)
}


@pytest.mark.parametrize(("size", "length"), GROUPS)
def test_codes_are_groups_with_their_distance(size, length):
    group = permutations.make(num=size, length=length, method="code", include_identity=True)
    assert_is_set(group, size, length)
    assert permutations.distance_statistics(group)[0] == GROUPS[size, length]
    np.testing.assert_array_equal(group[0], np.arange(length))
    number = length ** np.arange(length)  # a permutation as one integer
    members = np.sort(group @ number)
    for member in group:
        np.testing.assert_array_equal(np.sort(member[group] @ number), members)


@pytest.mark.parametrize(("size", "length"), [(s, m) for s, m in GROUPS if (s, m) != (24, 4)])
def test_codes_without_the_identity_are_as_large_and_as_far_apart(size, length):
    coset = permutations.make(num=size, length=length, method="code")
    assert_is_set(coset, size, length)
    assert tuple(range(length)) not in as_tuples(coset)
    group = permutations.make(num=size, length=length, method="code", include_identity=True)
    assert permutations.distance_statistics(coset) == permutations.distance_statistics(group)


def test_affine_group_over_five_elements_is_the_lines():
    lines = {tuple((a * x + b) % 5 for x in range(5)) for a in range(1, 5) for b in range(5)}
    group = permutations.make(num=20, length=5, method="code", include_identity=True)
    assert as_tuples(group) == lines


def test_projective_group_over_seven_elements_is_the_moebius_maps():
    def moebius(a, b, c, d):
        def image(x):
            top, bottom = (a, c) if x == 7 else ((a * x + b) % 7, (c * x + d) % 7)
            return 7 if bottom == 0 else top * pow(bottom, -1, 7) % 7

        return tuple(image(x) for x in range(8))

    matrices = itertools.product(range(7), repeat=4)
    maps = {moebius(a, b, c, d) for a, b, c, d in matrices if (a * d - b * c) % 7}
    group = permutations.make(num=336, length=8, method="code", include_identity=True)
    assert as_tuples(group) == maps


@pytest.mark.parametrize(("size", "length", "k"), [(72, 9, 2), (504, 9, 3), (336, 8, 3)])
def test_codes_are_sharply_transitive(size, length, k):
    group = permutations.make(num=size, length=length, method="code", include_identity=True)
    # Any k elements in any order begin exactly one member.
    assert as_tuples(group[:, :k]) == set(itertools.permutations(range(length), k))


@pytest.mark.parametrize(
    ("num", "length", "distance"),
    [(10, 9, 8), (71, 9, 8), (73, 9, 7), (505, 9, 6), (1513, 9, 3), (57, 8, 6), (13, 4, 2)],
)
@pytest.mark.parametrize("include_identity", [False, True])
def test_code_is_the_farthest_with_enough_members(num, length, distance, include_identity):
    chosen = permutations.make(num=num, length=length, method="code", include_identity=include_identity)
    assert_is_set(chosen, num, length)
    assert permutations.distance_statistics(chosen)[0] == distance


@pytest.mark.parametrize("include_identity", [False, True])
def test_smaller_codes_are_the_beginning_of_larger_ones(include_identity):
    def code(num):
        return permutations.make(num=num, length=9, method="code", seed=5, include_identity=include_identity)

    np.testing.assert_array_equal(code(100), code(504)[:100])


def test_all_orders_of_four_frames():
    everything = set(itertools.permutations(range(4)))
    with_identity = permutations.make(num=24, length=4, method="code", include_identity=True)
    assert as_tuples(with_identity) == everything
    without = permutations.make(num=23, length=4, method="code")
    assert as_tuples(without) == everything - {(0, 1, 2, 3)}


# --- both methods --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", permutations.METHODS)
def test_seed_decides(method):
    def make(seed):
        return permutations.make(num=30, length=7, method=method, seed=seed)

    np.testing.assert_array_equal(make(0), make(0))
    assert as_tuples(make(0)) != as_tuples(make(1))


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.integers(3, 7), st.sampled_from(permutations.METHODS), st.booleans(), st.data())
def test_sets_are_distinct_permutations_and_obey_the_identity_rule(length, method, include_identity, data):
    num = data.draw(st.integers(2, 5 if length == 3 else 23))
    seed = data.draw(st.integers(0, 2**32))
    chosen = permutations.make(
        num=num, length=length, method=method, seed=seed, include_identity=include_identity
    )
    assert_is_set(chosen, num, length)
    is_identity = (chosen == np.arange(length)).all(axis=1)
    np.testing.assert_array_equal(is_identity, (np.arange(num) == 0) & include_identity)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"num": 1, "length": 9}, "num=1 .* at least 2"),
        ({"num": 5, "length": 1}, "length=1 .* at least 2"),
        ({"num": 2, "length": 2}, "there are 1 permutations of 2 elements without the identity"),
        ({"num": 24, "length": 4}, "there are 23 permutations of 4 elements without the identity"),
        ({"num": 25, "length": 4, "include_identity": True}, "there are 24 .* with the identity"),
        ({"num": 5, "length": 9, "seed": -1}, "seed=-1 .* at least 0"),
        ({"num": 5, "length": 9, "method": "gredy"}, "'gredy' .* closest known is 'greedy'"),
        ({"num": 5, "length": 9, "method": "zzz"}, "closest known is"),
        ({"num": 961, "length": 16, "method": "code"}, "largest code of length=16 has 960 "),
        ({"num": 16, "length": 15, "method": "code"}, "largest code of length=15 has 15 "),
        ({"num": 5, "length": 9, "index_base": 1}, "index_base=1 .* needs a path"),
    ],
)
def test_impossible_requests(request_, message):
    with pytest.raises(InputError, match=message):
        permutations.make(**request_)


# --- files ---------------------------------------------------------------------------------------


def test_save_then_load_is_the_identity(tmp_path):
    chosen = permutations.make(num=30, length=9)
    permutations.save(tmp_path / "set.npy", chosen)
    loaded = permutations.load(tmp_path / "set.npy", index_base=0)
    np.testing.assert_array_equal(loaded, chosen)
    assert loaded.dtype == np.int32
    assert [file.name for file in tmp_path.iterdir()] == ["set.npy"]


@pytest.mark.parametrize("dtype", ["uint8", "int64", ">i4"])
def test_one_based_files_become_zero_based(tmp_path, dtype):
    np.save(tmp_path / "set.npy", np.array([[1, 2, 3], [3, 1, 2]], dtype))
    loaded = permutations.load(tmp_path / "set.npy", index_base=1)
    np.testing.assert_array_equal(loaded, [[0, 1, 2], [2, 0, 1]])
    assert loaded.dtype == np.int32


def test_make_takes_the_first_rows_of_a_file(tmp_path):
    path = str(tmp_path / "set.npy")
    np.save(path, np.array([[2, 3, 1], [3, 1, 2], [1, 2, 3]]))
    chosen = permutations.make(num=2, length=3, path=path, index_base=1)
    np.testing.assert_array_equal(chosen, [[1, 2, 0], [2, 0, 1]])
    with pytest.raises(InputError, match=r"row 2 .*set.npy is the identity.*include_identity=True"):
        permutations.make(num=3, length=3, path=path, index_base=1)
    chosen = permutations.make(num=3, length=3, path=path, index_base=1, include_identity=True)
    np.testing.assert_array_equal(chosen[2], [0, 1, 2])
    with pytest.raises(InputError, match=r"set.npy holds 3 permutations, but num=4"):
        permutations.make(num=4, length=3, path=path, index_base=1)
    with pytest.raises(InputError, match=r"set.npy permutes 3 elements, but length=4"):
        permutations.make(num=2, length=4, path=path, index_base=1)
    with pytest.raises(InputError, match=r"index_base=None .* must be 0 or 1"):
        permutations.make(num=2, length=3, path=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([[0.0, 1.0]]), "holds float64; permutations are integers"),
        (np.array([0, 1, 2]), r"has shape \(3,\)"),
        (np.zeros((0, 9), int), r"has shape \(0, 9\)"),
        (np.array([[0, 1, 2], [0, 2, 2]]), r"row 1 .* is \[0, 2, 2\].* no permutation of 0 to 2"),
        (np.array([[0, 1], [0, 3]]), r"row 1 .* is \[0, 3\]"),
        (np.array([[1, 2, 3], [2, 1, 3]]), r"row 0 .*is one with index_base=1"),
        (np.array([[0, 1, 2], [2, 1, 0], [0, 1, 2]]), "row 2 .* repeats row 0"),
    ],
)
def test_files_without_permutations(tmp_path, content, message):
    np.save(tmp_path / "set.npy", content)
    with pytest.raises(InputError, match=r"set\.npy") as raised:
        permutations.load(tmp_path / "set.npy", index_base=0)
    assert raised.match(message)


def test_zero_based_file_read_as_one_based(tmp_path):
    np.save(tmp_path / "set.npy", np.array([[0, 1, 2]]))
    with pytest.raises(InputError, match="no permutation of 1 to 3; it is one with index_base=0"):
        permutations.load(tmp_path / "set.npy", index_base=1)
    with pytest.raises(InputError, match="must be 0 or 1"):
        permutations.load(tmp_path / "set.npy", index_base=2)


def damaged_files():
    whole = io.BytesIO()
    np.save(whole, np.arange(12).reshape(4, 3))
    pickled = io.BytesIO()
    np.save(pickled, np.array([["a"]], object), allow_pickle=True)
    archive = io.BytesIO()
    np.savez(archive, np.arange(3))
    return {
        "empty": b"",
        "text": b"0 1 2\n2 1 0\n",
        "truncated": whole.getvalue()[:-8],
        "torn header": whole.getvalue().replace(b"(4, 3)", b"((4, 3"),
        "pickled": pickled.getvalue(),
        "archive": archive.getvalue(),
    }


@pytest.mark.parametrize("kind", damaged_files())
def test_files_which_are_no_arrays(tmp_path, kind):
    (tmp_path / "set.npy").write_bytes(damaged_files()[kind])
    with pytest.raises(InputError, match=r"set.npy is not a whole \.npy file"):
        permutations.load(tmp_path / "set.npy", index_base=0)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*set.npy: No such file"):
        permutations.load(tmp_path / "set.npy", index_base=0)


def test_save_destroys_nothing(tmp_path):
    chosen = permutations.make(num=5, length=4)
    path = tmp_path / "set.npy"
    permutations.save(path, chosen)
    with pytest.raises(InputError, match=r"row 0 .* no permutation of 0 to 3"):
        permutations.save(path, chosen + 1)
    np.testing.assert_array_equal(permutations.load(path, index_base=0), chosen)
    for impossible in (tmp_path / "missing" / "set.npy", path / "set.npy", tmp_path):
        with pytest.raises(InputError, match="cannot write the permutation set"):
            permutations.save(impossible, chosen)
    assert [file.name for file in tmp_path.iterdir()] == ["set.npy"]


def test_orders_and_their_reverses_are_merged_on_request():
    """Of 24 orders of four frames 12 remain, and with their reverses they are all again."""
    merged = permutations.make(num=12, length=4, include_identity=True, merge_reversed=True)
    orders = {tuple(order) for order in merged.tolist()}
    assert (0, 1, 2, 3) in orders
    assert orders | {order[::-1] for order in orders} == set(itertools.permutations(range(4)))
    longer = permutations.make(num=100, length=8, merge_reversed=True)
    assert (longer[:, 0] < longer[:, -1]).all()
    with pytest.raises(InputError, match=r"there are 11 permutations .* with reversed ones merged"):
        permutations.make(num=12, length=4, merge_reversed=True)
    with pytest.raises(InputError, match="needs method='greedy'"):
        permutations.make(num=12, length=8, method="code", merge_reversed=True)
