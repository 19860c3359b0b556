import io
import json
import logging

import hypothesis
import numpy as np
import pytest
from batches import assert_same_batches, take
from hypothesis import strategies as st
from PIL import Image

from ssl_jax.data import pipeline, sources
from ssl_jax.runtime.errors import InputError

ATARI = (210, 160)
ODD = (48, 50)  # the largest of the odd pictures; the smallest has 40 rows
BAD = {9: "unreadable", 11: "unreadable", 13: "undersized"}


def png(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def atari(atari_tiny_dir):
    return sources.make(name="atari_frames/tiny", data_dir=atari_tiny_dir)


@pytest.fixture(scope="module")
def odd(odd_pictures_dir):
    """All 200 odd pictures as the training split: index i is picture i, three of them bad."""
    splits = {
        "train": "train",
        "selection": "test[:2]",
        "validation": "test[2:]",
        "test": "test[2:]",
    }
    return sources.make(name="odd_pictures", data_dir=odd_pictures_dir, splits=splits)


def train(source, **options):
    return pipeline.train_batches(source, pipeline.TrainOptions(**options))


def evaluate(source, **options):
    return pipeline.evaluation_batches(source, pipeline.EvaluationOptions(**options))


def load(source, **options):
    return pipeline.load_arrays(source, pipeline.EvaluationOptions(batch_size=64, **options))


# Decoding


def test_a_picture_of_the_right_size_keeps_its_pixels():
    pixels = np.random.default_rng(0).integers(256, size=(21, 16, 3), dtype=np.uint8)
    encoded = png(Image.fromarray(pixels))
    for rng in (None, np.random.default_rng(0)):
        np.testing.assert_array_equal(pipeline.decode_image(encoded, (21, 16), (1, 1), rng), pixels)


def test_a_picture_that_covers_is_only_cropped():
    pixels = np.random.default_rng(0).integers(256, size=(12, 30, 3), dtype=np.uint8)
    encoded = png(Image.fromarray(pixels))
    middle = pipeline.decode_image(encoded, (12, 10), (1, 1))
    np.testing.assert_array_equal(middle, pixels[:, 10:20])
    lefts = set()
    for seed in range(40):
        crop = pipeline.decode_image(encoded, (12, 10), (1, 1), np.random.default_rng(seed))
        (left,) = [i for i in range(21) if np.array_equal(crop, pixels[:, i : i + 10])]
        lefts.add(left)
    assert len(lefts) > 10


def test_scaling_keeps_the_shape_of_the_picture():
    # 20 x 40 covers 10 x 10 at half its size; the middle 20 columns remain. Column c has value 6 c:
    # output column j is the mean of columns 10 + 2 j and 11 + 2 j (inside, by symmetry).
    pixels = np.broadcast_to(6 * np.arange(40, dtype=np.uint8)[None, :, None], (20, 40, 3))
    out = pipeline.decode_image(png(Image.fromarray(pixels.copy())), (10, 10), (1, 1))
    expected = np.broadcast_to(6 * (10.5 + 2 * np.arange(10))[None, :, None], (10, 10, 3))
    np.testing.assert_allclose(out[:, 1:-1], expected[:, 1:-1], atol=1)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.none() | st.integers(0, 9),
)
def test_every_size_becomes_the_target(size, target, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    encoded = png(Image.new("RGB", size[::-1], (10, 200, 30)))
    out = pipeline.decode_image(encoded, target, (1, 1), rng)
    assert (out.shape, out.dtype) == ((*target, 3), np.uint8)
    np.testing.assert_array_equal(out, np.broadcast_to(np.uint8([10, 200, 30]), out.shape))


def test_modes_become_rgb():
    colour = Image.new("RGB", (4, 4), (40, 80, 160))
    for image in (colour, colour.quantize(2), colour.convert("RGBA")):
        np.testing.assert_array_equal(pipeline.decode_image(png(image), (4, 4), (1, 1))[0, 0], [40, 80, 160])
    grey = pipeline.decode_image(png(Image.new("L", (4, 4), 77)), (4, 4), (1, 1))
    np.testing.assert_array_equal(grey[0, 0], [77, 77, 77])


def test_jpeg_is_decoded_small_but_alike():
    smooth = np.indices((400, 600)).sum(0)[:, :, None] * np.array([0.25, 0.2, 0.1])
    encoded = png(Image.fromarray(smooth.astype(np.uint8)), "JPEG", quality=95)
    out = pipeline.decode_image(encoded, (40, 60), (1, 1))
    full = Image.open(io.BytesIO(encoded)).resize((60, 40), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(out.astype(int), np.asarray(full).astype(int), atol=4)


def test_undersized():
    encoded = png(Image.new("RGB", (30, 19)))
    with pytest.raises(pipeline.UndersizedError, match="19 x 30, needed are 20 x 20"):
        pipeline.decode_image(encoded, (40, 40), pipeline.half((40, 40)))
    assert pipeline.decode_image(encoded, (40, 40), (19, 20)).shape == (40, 40, 3)


# Training


def test_batches_hold_the_pictures_of_their_indices(atari):
    source = atari.open("train")
    batch = next(train(source, batch_size=4, image_size=ATARI, seed=0))
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 210, 160, 3), np.uint8)
    assert batch["index"].dtype == np.int64
    for image, index in zip(batch["image"], batch["index"], strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(source[int(index)]["image"]))))


def test_every_epoch_is_another_order_of_everything(atari):
    def order(seed):
        batches = train(atari.open("selection"), batch_size=16, image_size=ATARI, seed=seed)
        drawn = np.concatenate([batch["index"] for batch in take(batches, 10)])
        batches.close()
        return drawn.reshape(2, 80)

    first, second = order(seed=0)
    assert sorted(first) == sorted(second) == list(range(80))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(order(seed=0), [first, second])
    # Not only another order: also none that another seed has in another epoch.
    assert not any(np.array_equal(a, b) for a in (first, second) for b in order(seed=1))


def test_processes_share_every_epoch(atari):
    def read(batch_size, **process):
        batches = train(atari.open("selection"), batch_size=batch_size, image_size=ATARI, seed=3, **process)
        drawn = take(batches, 5)
        batches.close()
        return drawn

    whole = read(16)
    parts = [read(4, process_index=i, process_count=4) for i in range(4)]
    # However many processes there are, side by side their batches are the same.
    for step in range(5):
        for name in ("index", "image"):
            together = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(together, whole[step][name])


def test_resume_goes_on_with_the_next_batch(odd):
    """Whatever was prefetched, whatever reads on: threads or workers, also with bad examples."""
    source = odd.open("train")
    arguments = {"batch_size": 16, "image_size": ODD, "seed": 5}
    straight = train(source, **arguments)
    expected = take(straight, 20)
    stopped = train(source, **arguments, threads=3, prefetch=6)
    take(stopped, 7)
    state = json.loads(json.dumps(stopped.get_state()))
    stopped.close()
    for reading in ({"threads": 1, "prefetch": 1}, {"workers": 2}):
        resumed = train(source, **arguments, **reading)
        if "threads" in reading:
            take(resumed, 1)  # What was read before the state was set does not matter.
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert_same_batches(take(resumed, 13), expected[7:])
        assert resumed.skipped == straight.skipped
        assert resumed.get_state() == straight.get_state()
        resumed.close()
    straight.close()


def test_bad_examples_are_skipped_counted_and_named_once(odd, caplog):
    with caplog.at_level(logging.WARNING):
        batches = train(odd.open("train"), batch_size=20, image_size=ODD, seed=0)
        drawn = take(batches, 20)  # two epochs
        batches.close()
    indices = np.concatenate([batch["index"] for batch in drawn])
    assert len(indices) == 400
    assert not set(indices) & set(BAD)
    assert len(set(indices)) == 197
    skipped = batches.skipped
    assert {index: cause for (_, index), cause in skipped.causes.items()} == BAD
    assert skipped.counts() == {"unreadable": 2, "undersized": 1}
    # Each of the three is met once an epoch, and perhaps as the substitute for another.
    assert skipped.bad >= 6
    assert skipped.read == 400 + skipped.bad
    messages = [record.getMessage() for record in caplog.records if "Skipped" in record.message]
    assert len(messages) == 3
    assert any("odd_pictures train, example 13" in message for message in messages)


def test_too_many_bad_examples_stop_the_run(odd):
    batches = train(odd.open("train"), batch_size=20, image_size=ODD, seed=0, max_bad_share=0.01)
    with pytest.raises(InputError, match=r"odd_pictures train, example \d+.*0\.01.*max_bad_share"):
        take(batches, 20)
    assert batches.skipped.read >= pipeline.MIN_READ
    batches.close()


def test_nothing_but_bad_examples_stops_the_run(odd):
    for share in (0.05, 1.0):
        batches = train(
            odd.open("train"),
            batch_size=2,
            image_size=ODD,
            seed=0,
            min_size=(999, 999),
            max_bad_share=share,
        )
        with pytest.raises(InputError, match="repair the data set"):
            take(batches, 200)
        batches.close()


def test_a_state_of_other_data_is_refused(atari):
    arguments = {"batch_size": 4, "image_size": ATARI, "seed": 0}
    state = train(atari.open("train"), **arguments).get_state()
    with pytest.raises(InputError, match="has 80 examples, but the saved run read 320"):
        train(atari.open("selection"), **arguments).set_state(state)


def test_state_of_as_many_other_examples_is_refused(odd_pictures_dir, atari_tiny_dir):
    def half(part):
        cut = {"train": part, "selection": "test[:1]", "validation": "test[1:]", "test": "test[1:]"}
        source = sources.make(name="odd_pictures", data_dir=odd_pictures_dir, splits=cut).open("train")
        return train(source, batch_size=4, image_size=ODD, seed=0)

    state = half("train[:50%]").get_state()
    half("train[:50%]").set_state(state)
    with pytest.raises(InputError, match=r"as many examples as odd_pictures .* but they are others"):
        half("train[50%:]").set_state(state)
    tiny = sources.make(name="atari_frames/tiny", data_dir=atari_tiny_dir).open("train")
    frames = train(tiny, batch_size=4, image_size=ODD, seed=0)
    with pytest.raises(InputError, match="or were rendered anew by other versions of the libraries"):
        frames.set_state(frames.get_state() | {"fingerprint": "another"})
    del state["fingerprint"]  # as runs had none once
    half("train[50%:]").set_state(state)


@pytest.mark.parametrize("argument", ["batch_size", "seed", "workers", "threads", "prefetch"])
def test_numbers_too_small_are_refused(atari, argument):
    arguments = {"batch_size": 4, "image_size": ATARI, "seed": 0} | {argument: -1}
    with pytest.raises(InputError, match=f"{argument} must be at least ., not -1"):
        train(atari.open("train"), **arguments)


# Evaluation


@pytest.mark.parametrize("process_count", [1, 3])
def test_evaluation_counts_every_good_example_once(odd, process_count):
    source = odd.open("train", ["label"])
    shards = [
        list(
            evaluate(
                source,
                batch_size=24,
                image_size=ODD,
                process_index=i,
                process_count=process_count,
            )
        )
        for i in range(process_count)
    ]
    assert len({len(shard) for shard in shards}) == 1  # Collectives need equal numbers of steps.
    counted = []
    for batch in (batch for shard in shards for batch in shard):
        assert batch["image"].shape == (24, *ODD, 3)
        good = batch["mask"]
        counted.extend(batch["index"][good].tolist())
        np.testing.assert_array_equal(batch["label"][good], batch["index"][good] % 4)
        np.testing.assert_array_equal(batch["image"][~good], 0)
        np.testing.assert_array_equal(batch["label"][~good], 0)
    assert sorted(counted) == [i for i in range(200) if i not in BAD]


def test_evaluation_is_in_order_and_crops_in_the_middle(odd):
    (batch,) = evaluate(odd.open("test"), batch_size=9, image_size=(40, 50))
    np.testing.assert_array_equal(batch["index"], [*range(8), -1])
    np.testing.assert_array_equal(batch["mask"], [True] * 8 + [False])
    # Test picture i is picture 22 + i, of that value.
    np.testing.assert_array_equal(batch["image"][:8, 20, 20, 0], 22 + np.arange(8))


def test_load_arrays(odd, caplog):
    skipped = pipeline.Skipped()
    arrays = load(odd.open("train", ["label"]), image_size=ODD, skipped=skipped)
    good = [i for i in range(200) if i not in BAD]
    np.testing.assert_array_equal(arrays["index"], good)
    np.testing.assert_array_equal(arrays["label"], np.array(good) % 4)
    np.testing.assert_array_equal(arrays["image"][:, 24, 25, 1], good)
    assert (skipped.read, skipped.bad) == (200, 3)
    few = load(odd.open("train"), image_size=ODD, limit=10)
    np.testing.assert_array_equal(few["index"], np.arange(0, 200, 20))
    with pytest.raises(InputError, match="None of the examples of odd_pictures test"):
        load(odd.open("test"), image_size=ODD, min_size=(99, 99))


def test_evaluation_stops_at_too_many_bad_examples(odd):
    with pytest.raises(InputError, match="undersized"):
        load(odd.open("train"), image_size=ODD, min_size=(46, 46))
