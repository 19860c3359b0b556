"""Settings every test shares: four CPU devices, strict rank promotion, one small Atari data set."""

import os
import signal

# A shell without job control starts what is in the background with Ctrl-C ignored, which programs inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Must be set before JAX starts its backends; the multi-device tests need more than one device.
_DEVICES = "--xla_force_host_platform_device_count=4"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# How long an example takes says nothing on a machine that has other work as well.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """One for all runs of the session, here or started by the command line; the user's own is left alone."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of all workers
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(base / "xla"))
        yield


@pytest.fixture(scope="module")
def little_optimization():
    """For tests whose many small programs take far longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def all_optimizations() -> dict:
    """Compiler options of a program, among such tests, that is to be compiled as it is outside of tests."""
    return {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


@pytest.fixture(scope="session")
def atari_tiny_dir(tmp_path_factory) -> str:
    """A tfds directory that holds `atari_frames/tiny`, built once a session (a few seconds)."""
    from ssl_jax.data import atari_frames

    data_dir = str(tmp_path_factory.mktemp("tfds"))
    atari_frames.build("tiny", data_dir)
    return data_dir


@pytest.fixture(scope="session")
def odd_pictures_dir(tmp_path_factory) -> str:
    """A tfds directory that holds `odd_pictures`: 200 examples to train, 10 to test.

    Example i is a PNG of one colour, of value i in all channels and 40 + i % 9 rows by 50 columns,
    with label i % 4; except for 3 (grey), 5 (palette), 7 (with transparency), 15 (JPEG of 400 x
    600), which are good, and 9 (no picture), 11 (cut off), 13 (6 x 6), which are not.
    """
    import io

    import numpy as np
    import tensorflow_datasets as tfds
    from PIL import Image

    def encode(image: Image.Image, file_format: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format=file_format)
        return buffer.getvalue()

    def picture(i: int) -> bytes:
        image = Image.new("RGB", (50, 40 + i % 9), (i, i, i))
        noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(48, 48), dtype=np.uint8))
        special = {
            3: lambda: encode(image.convert("L")),
            5: lambda: encode(image.quantize(4)),
            7: lambda: encode(image.convert("RGBA")),
            9: lambda: b"This is no picture.",
            11: lambda: encode(noise)[:400],
            13: lambda: encode(image.resize((6, 6))),
            15: lambda: encode(image.resize((600, 400)), "JPEG"),
        }
        return special[i]() if i in special else encode(image)

    class OddPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(num_classes=4),
            }
            features["boxes"] = tfds.features.Sequence(np.int32)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(0, 200),
                "test": self._generate_examples(20, 30),
            }

        def _generate_examples(self, start, stop):
            for i in range(start, stop):
                yield i, {"image": io.BytesIO(picture(i)), "label": i % 4, "boxes": [1] * (i % 3)}

    data_dir = str(tmp_path_factory.mktemp("odd"))
    tfds.disable_progress_bar()
    OddPictures(data_dir=data_dir, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return data_dir
