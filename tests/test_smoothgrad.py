import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial
from scipy import ndimage, special, stats

from ssl_jax.evaluation import smoothgrad
from ssl_jax.networks.compact import Compact
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("little_optimization")

KEY = jax.random.key(3)
SHAPE = (4, 5, 3)
RNG = np.random.default_rng(0)
IMAGES = np.float32(RNG.uniform(-1, 2, size=(2, *SHAPE)))
TARGET = np.array([2, 0])
WEIGHTS = np.float32(RNG.normal(size=(*SHAPE, 4)))
GREY = np.full((1, 1, 1, 1), 0.5, np.float32)


def linear(weights, images):
    return jnp.einsum("nhwc,hwck->nk", images, weights)


def quadratic(weights, images):
    return linear(weights, images**2) / 2


def bent(weights, images):
    return jnp.tanh(linear(weights, images) / 4) + jnp.sin(linear(weights[..., ::-1], images))


LINEAR, QUADRATIC, BENT = (Partial(function, WEIGHTS) for function in (linear, quadratic, bent))
OF_TARGET = np.moveaxis(WEIGHTS, -1, 0)[TARGET]  # [2, 4, 5, 3]


def kinds(moments):
    return {name: getattr(moments, name) for name in ("mean", "mean_square", "variance")}


# --- Maps


def test_maps_of_a_linear_function_are_its_weights():
    np.testing.assert_allclose(smoothgrad.gradient(LINEAR, IMAGES, TARGET), OF_TARGET, rtol=1e-6)
    moments = smoothgrad.noisy_gradients(LINEAR, IMAGES, TARGET, KEY, samples=7, chunk=3)
    np.testing.assert_allclose(moments.mean, OF_TARGET, rtol=1e-5)
    np.testing.assert_allclose(moments.mean_square, OF_TARGET**2, rtol=1e-5)
    np.testing.assert_allclose(moments.variance, 0, atol=1e-10)
    actual = smoothgrad.integrated_gradients(LINEAR, IMAGES, TARGET, GREY, steps=3)
    np.testing.assert_allclose(actual, OF_TARGET * (IMAGES - 0.5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("input_range", [None, 2.0])
def test_moments_of_a_quadratic_function_are_the_analytic_ones(input_range):
    samples, noise = 4000, 0.2
    moments = smoothgrad.noisy_gradients(
        QUADRATIC, IMAGES, TARGET, KEY, samples=samples, noise=noise, chunk=500, input_range=input_range
    )
    spread = np.ptp(IMAGES.reshape(2, -1), axis=1) if input_range is None else np.full(2, input_range)
    deviation = noise * spread[:, None, None, None] * np.abs(OF_TARGET)  # of the gradient, weights * x
    mean = OF_TARGET * IMAGES
    within = lambda actual, expected, error: np.testing.assert_array_less(
        np.abs(actual - expected), 5 * error
    )
    within(moments.mean, mean, deviation / np.sqrt(samples))
    within(moments.variance, deviation**2, deviation**2 * np.sqrt(2 / samples))
    error = np.sqrt((2 * deviation**4 + 4 * mean**2 * deviation**2) / samples)
    within(moments.mean_square, mean**2 + deviation**2, error)
    actual = smoothgrad.integrated_gradients(QUADRATIC, IMAGES, TARGET, GREY, steps=2)
    np.testing.assert_allclose(actual, OF_TARGET * (IMAGES**2 - 0.25) / 2, rtol=1e-4, atol=1e-5)


def test_moments_are_those_of_gradients_at_noisy_copies_taken_one_by_one():
    samples, noise = 5, 0.3
    gradients = []
    for sample in range(samples):
        draw = lambda n, sample=sample: jax.random.normal(
            jax.random.fold_in(jax.random.fold_in(KEY, sample), n), SHAPE
        )
        copies = [image + noise * np.ptp(image) * draw(n) for n, image in enumerate(IMAGES)]
        gradients.append(smoothgrad.gradient(BENT, jnp.stack(copies), TARGET))
    gradients = np.float64(gradients)
    actual = smoothgrad.noisy_gradients(BENT, IMAGES, TARGET, KEY, samples=samples, noise=noise, chunk=2)
    np.testing.assert_allclose(actual.mean, gradients.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual.mean_square, (gradients**2).mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual.variance, gradients.var(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_chunks_change_nothing(chunk):
    noisy = functools.partial(smoothgrad.noisy_gradients, BENT, IMAGES, TARGET, KEY, samples=7)
    for whole, parts in zip(*(kinds(noisy(chunk=size)).values() for size in (7, chunk)), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)
    integrated = functools.partial(smoothgrad.integrated_gradients, BENT, IMAGES, TARGET, GREY, steps=7)
    np.testing.assert_allclose(integrated(chunk=chunk), integrated(chunk=7), rtol=1e-4, atol=1e-6)


def test_the_map_of_a_picture_hangs_on_its_own_place_and_key_alone():
    noisy = lambda images, key: (
        smoothgrad.noisy_gradients(BENT, images, TARGET[: len(images)], key, samples=4).mean
    )
    whole = noisy(IMAGES, KEY)
    np.testing.assert_allclose(noisy(IMAGES[:1], KEY), whole[:1], rtol=1e-5, atol=1e-6)
    assert not np.allclose(noisy(IMAGES, jax.random.key(4)), whole, rtol=0.1)
    alike = noisy(np.stack([IMAGES[0]] * 2), KEY)
    assert not np.allclose(alike[0], alike[1], rtol=0.1)  # another target, and other noise


def test_noise_changes_nothing_where_there_is_none():
    plain = smoothgrad.gradient(BENT, IMAGES, TARGET)
    moments = smoothgrad.noisy_gradients(BENT, IMAGES, TARGET, KEY, samples=3, noise=0.0)
    np.testing.assert_allclose(moments.mean, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.mean_square, plain**2, rtol=1e-5, atol=1e-6)


def test_integrated_gradients_are_complete():
    baseline = np.float32(np.random.default_rng(1).normal(size=(1, *SHAPE)))
    maps = smoothgrad.integrated_gradients(BENT, IMAGES, TARGET, baseline, steps=1000, chunk=250)
    answers = lambda images: np.take_along_axis(np.asarray(BENT(images)), TARGET[:, None], 1)[:, 0]
    expected = answers(IMAGES) - answers(np.broadcast_to(baseline, IMAGES.shape))
    np.testing.assert_allclose(maps.sum((1, 2, 3)), expected, atol=1e-3)
    assert np.abs(expected).max() > 1


def test_variables_of_a_partial_are_no_constants_of_the_program():
    traces = []

    def logits(weights, images):
        traces.append(images.shape)
        return linear(weights, images)

    for scale in (1, 2, 3):
        function = Partial(logits, scale * WEIGHTS)
        moments = smoothgrad.noisy_gradients(function, IMAGES, TARGET, KEY, samples=6, chunk=3)
        np.testing.assert_allclose(moments.mean, scale * OF_TARGET, rtol=1e-5)
    assert traces == [(6, *SHAPE)]  # a chunk of 3 copies of 2 pictures, compiled once
    closed = lambda images: linear(WEIGHTS, images)  # works as well
    np.testing.assert_allclose(smoothgrad.gradient(closed, IMAGES, TARGET), OF_TARGET, rtol=1e-6)


def test_heat_adds_up_channels():
    np.testing.assert_allclose(smoothgrad.heat(np.array([[[[1.0, -2, 3]]]])), [[[6]]])


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"chunk": 0}, {"noise": -0.1}])
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError, match=r"samples and chunk must be at least 1, and noise at least 0, not"):
        smoothgrad.noisy_gradients(LINEAR, IMAGES, TARGET, KEY, **wrong)
    with pytest.raises(InputError, match="steps and chunk must be at least 1, not 0 and 8"):
        smoothgrad.integrated_gradients(LINEAR, IMAGES, TARGET, GREY, steps=0)
    with pytest.raises(InputError, match=r"heat \[2, 5, 4\] must have the size of the pictures, \[2, 4, 5\]"):
        smoothgrad.deletion(LINEAR, IMAGES, TARGET, np.zeros((2, 5, 4)), GREY)


# --- Whether the maps can be believed


@pytest.fixture(scope="module")
def small_network():
    """What gives the heat of two pictures; parameters by which their left sides count; and others."""
    encoder = Compact(width=8)
    images = np.float32(np.random.default_rng(2).normal(size=(2, 32, 32, 3)))

    def logits(params, images):
        maps = encoder.apply({"params": params["encoder"]}, images)
        return jnp.einsum("nhwc,hwck->nk", maps, params["head"]["kernel"])

    @jax.jit
    def initial(key):
        head = {"kernel": jax.random.normal(key, (4, 4, 8, 4))}
        return {"encoder": encoder.init(key, images)["params"], "head": head}

    def attribute(params, key=KEY):
        function = Partial(logits, params)
        moments = smoothgrad.noisy_gradients(function, images, TARGET, key, samples=8, chunk=4)
        return smoothgrad.heat(moments.mean_square)

    params, random_params = (initial(jax.random.key(seed)) for seed in (0, 1))
    learned = params["head"]["kernel"] * np.array([1, 0.5, 0.1, 0.05])[None, :, None, None]
    return attribute, {**params, "head": {"kernel": learned}}, random_params


def test_randomised_parameters_change_maps_and_other_noise_does_not(small_network):
    attribute, params, random_params = small_network
    map_of, others = attribute(params), attribute(params, jax.random.key(8))
    assert (smoothgrad.rank_correlation(map_of, others) > 0.9).all()
    assert (smoothgrad.rank_correlation(map_of, attribute(random_params)) < 0.7).all()


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_rank_correlation_is_spearmans(seed, levels):
    rng = np.random.default_rng(seed)
    maps, others = rng.integers(levels, size=(2, 3, 4, 5)).astype(float)
    expected = [stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(maps, others, strict=True)]
    np.testing.assert_allclose(smoothgrad.rank_correlation(maps, others), expected, atol=1e-12)


def test_rank_correlation_with_a_map_of_one_value_is_unknown():
    maps = np.arange(12.0).reshape(1, 3, 4)
    assert np.isnan(smoothgrad.rank_correlation(maps, np.ones((1, 3, 4)))).all()


def test_deletion_and_insertion_by_hand():
    # Two logits, the sum of a picture and 0: softmax is the logistic function of the sum.
    logits = lambda images: jnp.stack([images.sum((1, 2, 3)), jnp.zeros(len(images))], axis=1)
    images = np.array([[1.0, 2], [4, -3]], np.float32)[None, :, :, None]
    maps = np.array([[0.2, 0.3], [0.9, 0.1]])[None]
    black = np.zeros((1, 1, 1, 1))
    curve = smoothgrad.deletion(logits, images, np.array([0]), maps, black, steps=4)
    expected = special.expit([4, 0, -2, -3, 0])
    np.testing.assert_allclose(curve.share, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.probability, expected[None], rtol=1e-6)
    np.testing.assert_allclose(curve.auc, [np.trapezoid(expected, dx=0.25)], rtol=1e-6)
    curve = smoothgrad.insertion(logits, images, np.array([1]), maps, black, steps=2)
    expected = 1 - special.expit([0, 6, 4])
    np.testing.assert_allclose(curve.probability, expected[None], rtol=1e-5)
    np.testing.assert_allclose(curve.auc, [np.trapezoid(expected, dx=0.5)], rtol=1e-5)


def test_true_pixels_count_sooner_than_others():
    rng = np.random.default_rng(4)
    images = np.float32(rng.uniform(0.5, 1, size=(3, 8, 8, 3)))
    weights = np.zeros((8, 8, 3, 2), np.float32)
    weights[2:4, 5:7, :, 0] = 1  # four pixels make class 0
    logits = lambda images: linear(weights, images) + jnp.array([[-4.0, 0]])
    target, black = np.zeros(3, int), np.zeros((1, 1, 1, 1))
    true = smoothgrad.heat(smoothgrad.gradient(logits, images, target))
    chance = rng.uniform(size=true.shape)
    deleted = {
        name: smoothgrad.deletion(logits, images, target, maps, black)
        for name, maps in {"true": true, "chance": chance, "worst": -true}.items()
    }
    assert (deleted["true"].auc < deleted["chance"].auc - 0.1).all()
    assert (deleted["chance"].auc < deleted["worst"].auc - 0.1).all()
    assert (deleted["true"].probability[:, 2] < 0.05).all()  # 4 of 64 pixels
    inserted = [smoothgrad.insertion(logits, images, target, maps, black).auc for maps in (true, chance)]
    assert (inserted[0] > inserted[1] + 0.1).all()


def test_blurred_pictures_are_convolved_with_a_gaussian():
    images = np.random.default_rng(5).uniform(size=(2, 7, 30, 3)).astype(np.float32)
    expected = ndimage.gaussian_filter(images, (0, 3, 3, 0), mode="reflect", truncate=2)
    np.testing.assert_allclose(smoothgrad.blurred(images, 3.0), expected, rtol=1e-4)
    np.testing.assert_allclose(smoothgrad.blurred(np.ones((1, 4, 4, 1))), 1, rtol=1e-5)


def test_all_heats_are_those_of_single_maps():
    about = (QUADRATIC, IMAGES, TARGET)
    found = smoothgrad.all_heats(*about, KEY, samples=5, noise=0.2, steps=4, chunk=2)
    noisy = smoothgrad.noisy_gradients(*about, KEY, samples=5, noise=0.2, chunk=2)
    maps = {
        "squares": noisy.mean_square,
        "mean": noisy.mean,
        "variance": noisy.variance,
        "integrated": smoothgrad.integrated_gradients(*about, 0 * GREY, steps=4, chunk=2),
        "gradient": smoothgrad.gradient(*about),
    }
    assert found.keys() == maps.keys()
    for name, of_kind in maps.items():
        np.testing.assert_allclose(found[name], np.abs(of_kind).sum(-1), rtol=1e-6, err_msg=name)
