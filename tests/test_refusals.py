"""File systems that refuse: what cannot be read now is not broken, and no nicety is worth a run."""

import errno
import os
import re
import shutil
import subprocess
import sys
import textwrap

import films
import numpy as np
import processes
import pytest
import refusals
from PIL import Image

from ssl_jax.runtime.checkpoints import Checkpoints

TEMPLATE = '{"w": np.zeros(100_000), "b": jnp.float32(0)}'
HEAD = f"""
import os, sys
import jax.numpy as jnp, numpy as np
from ssl_jax.runtime.checkpoints import Checkpoints, restore_raw
from ssl_jax.runtime import files
from ssl_jax.runtime.errors import InputError
files.PAUSE_SECONDS = 0.0
place, template = sys.argv[1], {TEMPLATE}
"""
NOW = r"cannot be read now \(.*{}.*\); nothing was changed, so run this again once the file system answers"


def run(code: str, *arguments, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", HEAD + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, env=refusals.environment(**variables), capture_output=True, text=True)


@pytest.fixture
def place(tmp_path):
    """Checkpoints 1 (the best), 2 and 3."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, best_metric="accuracy")
    for step, accuracy in [(1, 0.9), (2, 0.1), (3, 0.2)]:
        state = {"w": np.random.default_rng(step).random(100_000), "b": np.float32(step)}
        checkpoints.save(step, state, {"position": step}, {"accuracy": accuracy})
    checkpoints.close()
    return tmp_path / "checkpoints"


def names(place) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_checkpoint_on_file_server_that_is_away_is_kept(place):
    # What orbax reads by Python, what tensorstore reads by C++, and files that seem to be missing.
    refused = [
        ("open", errno.ESTALE, "3/manifest/metadata"),
        ("read", errno.EIO, "3/manifest/metadata"),
        ("open", errno.ESTALE, "3/state/d/"),
        ("read", errno.EIO, "3/state/d/"),
        ("read", errno.ETIMEDOUT, "3/state/manifest.ocdbt"),
        ("open", errno.EMFILE, "3/state/_METADATA"),
        ("open", errno.EACCES, "3/state/d/"),
        ("stat,open", errno.ENOTCONN, "3/manifest"),
        ("stat,list,open", errno.ESTALE, "checkpoints/3"),
    ]
    code = """
        checkpoints = Checkpoints(place)
        for calls, number, path in eval(sys.argv[2]):
            os.environ |= {"REFUSED_CALLS": calls, "REFUSED_ERRNO": str(number), "REFUSED_PATH": path}
            for read in (lambda: checkpoints.restore(template), lambda: restore_raw(place)):
                try:
                    print(read())
                except InputError as error:
                    print(error)
        os.environ["REFUSED_CALLS"] = ""
        print(checkpoints.restore(template)[0])
    """
    done = run(code, place, repr(refused), **refusals.refuse("", 0))
    assert (done.returncode, done.stderr) == (0, "")
    *sentences, step = done.stdout.splitlines()
    for (_, number, _), *two in zip(refused, sentences[::2], sentences[1::2], strict=True):
        for sentence in two:
            assert re.match(f"checkpoint {place}/3 " + NOW.format(os.strerror(number)), sentence), sentence
    assert step == "3"
    assert names(place) == ["1", "2", "3"]


def test_checkpoint_read_at_second_try_is_as_good(place):
    code = "print(Checkpoints(place).restore(template)[0])"
    done = run(code, place, **refusals.refuse("read", errno.ESTALE, "3/state/d/", times=1))
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_score_that_cannot_be_read_ends_the_start_and_no_checkpoint_is_deleted(place):
    code = """
        from absl import logging
        checkpoints = lambda: Checkpoints(place, keep=2, best_metric="accuracy")
        try:
            checkpoints()
        except InputError as error:
            print(error)
        os.environ["REFUSED_CALLS"] = ""
        with open(place + "/1/manifest/metadata", "w") as file:
            file.write("{")
        some = checkpoints()
        some.save(4, template, {}, {"accuracy": 0.3})
        some.close()
    """
    done = run(code, place, **refusals.refuse("open,read", errno.EIO, "1/manifest"))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(f"checkpoint {place}/1 " + NOW.format("Input/output error"), done.stdout)
    assert names(place) == ["1", "3", "4"]  # Of 1 nobody knows that it is not the best.


def test_checkpoint_of_another_user_is_a_sentence(place):
    (place / "3").chmod(0o700)
    for path in (place, *place.parents):
        if path.stat().st_uid == os.getuid():
            path.chmod(path.stat().st_mode | 0o55)
    code = """
        try:
            os.setuid(65534)
        except PermissionError:
            os.chmod(place + "/3", 0)
        for read in (lambda: Checkpoints(place).restore(template), lambda: restore_raw(place)):
            try:
                print(read())
            except InputError as error:
                print(error)
    """
    done = run(code, place, HOME=str(place.parent))
    assert done.returncode == 0, done.stderr
    for sentence in done.stdout.splitlines():
        assert re.match(f"checkpoint {place}/3 " + NOW.format("Permission denied"), sentence), sentence
    (place / "3").chmod(0o755)
    assert names(place) == ["1", "2", "3"]


def test_checkpoint_that_one_process_cannot_read_ends_all_of_a_run(place):
    code = f"""
        import os, jax
        os.environ["REFUSED_CALLS"] = "open" if jax.process_index() == 1 else ""
        place, template = {str(place)!r}, {TEMPLATE}
        try:
                print(Checkpoints(place).restore(template))
        except InputError as error:
            print(error)
        os.environ["REFUSED_CALLS"] = ""
        print(Checkpoints(place).restore(template)[0])
    """
    head = HEAD.replace("place, template", "_, _").replace("sys.argv[1]", "0")
    variables = refusals.environment(**refusals.refuse("", errno.ESTALE, "3/state/d/"))
    started = processes.start(processes.joined(head + textwrap.dedent(code)), **variables)
    for output in processes.outputs(started):
        *_, sentence, step = output.splitlines()  # gloo says who it is connected to
        assert re.match(f"checkpoint {place}/3 " + NOW.format("Stale file handle"), sentence)
        assert step == "3"
    assert names(place) == ["1", "2", "3"]


# --- Niceties


USE = """
import os, sys
import jax.numpy as jnp
from pathlib import Path
from ssl_jax.data import building, manifests
from ssl_jax.runtime import config, files, lock, metrics
from ssl_jax.runtime.checkpoints import Checkpoints
place = Path(sys.argv[1]) / "run"
with lock.workdir_lock(place):
    config.claim_workdir(place, config.ConfigDict({"seed": 1}))
    config.claim_workdir(place, config.ConfigDict({"seed": 1}))
    lines = metrics.Metrics(place, resume_step=None)
    lines.write(1, {"loss": 0.5})
    lines.close()
    metrics.write_json(place / "results.json", {"loss": 0.5})
    checkpoints = Checkpoints(place / "checkpoints", best_metric="loss")
    checkpoints.save(1, {"w": jnp.ones(3)}, {}, {"loss": 0.5})
    checkpoints.close()
    print(Checkpoints(place / "checkpoints").restore({"w": jnp.zeros(3)})[1]["w"].sum())
with building.locked(place / "data.lock"):
    manifests.write(str(place), "pictures", {"version": 1}, [{"a": 1}])
print(*manifests.read(str(place), "pictures", {"version": 1}))
print(sorted(path.name for path in place.iterdir()))
"""
USED = (
    "3.0\n{'a': 1}\n"
    "['.ssl_jax', 'checkpoints', 'config.json', 'data.lock', 'metrics.jsonl', 'results.json', "
    "'selection.jsonl', 'tensorboard']\n"
)


@pytest.mark.parametrize(("calls", "number"), [("chmod", errno.EPERM), ("chmod,lock", errno.ENOTSUP)])
def test_file_system_that_refuses_niceties_is_good_enough(tmp_path, calls, number):
    environment = refusals.environment(
        XDG_CACHE_HOME=str(tmp_path / "cache"), **refusals.refuse(calls, number, tmp_path)
    )
    command = [sys.executable, "-c", USE, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, USED), done.stderr
    assert ("the file system has no locks" in done.stderr) == ("lock" in calls)


def test_file_system_without_fsync_is_good_enough_for_all_but_checkpoints(tmp_path):
    code = """
        from pathlib import Path
        from ssl_jax.runtime import lock, metrics
        workdir = Path(place)
        with lock.workdir_lock(workdir):
            files.write_text(workdir / "text", "text")
            lines = metrics.Metrics(workdir, resume_step=None)
            lines.write(1, {"loss": 0.5})
            lines.close()
            checkpoints = Checkpoints(workdir / "checkpoints")
            for number in (22, 95):
                os.environ["REFUSED_ERRNO"] = str(number)
                try:
                    checkpoints.save(number, template, {})
                    checkpoints.wait()
                except InputError as error:
                    print(error)
    """
    done = run(code, tmp_path, **refusals.refuse("sync", errno.EINVAL, tmp_path))
    for sentence, number in zip(done.stdout.splitlines(), (errno.EINVAL, errno.ENOTSUP), strict=True):
        assert sentence.startswith(f"checkpoint {number} cannot be written in {tmp_path}/checkpoints (")
        assert f"Failed to fsync file: {os.strerror(number)}); there is none before it" in sentence


def test_file_system_that_refuses_chmod_is_good_enough(tmp_path):
    if shutil.which("bindfs") is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("bindfs is not installed, or FUSE cannot be used here")
    (tmp_path / "real").mkdir()
    (tmp_path / "place").mkdir()
    mount = [
        "bindfs",
        "--chmod-deny",
        "--chown-deny",
        "--no-allow-other",
        tmp_path / "real",
        tmp_path / "place",
    ]
    if (mounted := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"bindfs cannot mount here: {mounted.stderr}")
    try:
        with pytest.raises(PermissionError):
            (tmp_path / "place").chmod(0o700)
        command = [sys.executable, "-c", USE, str(tmp_path / "place")]
        environment = os.environ | {"PYTHONPATH": str(refusals.ROOT), "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, USED, "")
    finally:
        subprocess.run(["fusermount", "-u", tmp_path / "place"], check=True)


def test_files_have_the_modes_that_the_user_asks_for(tmp_path):
    code = """
        os.umask(0o027)
        files.write_text(place, "")
    """
    assert run(code, tmp_path / "file").returncode == 0
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_failed_sync_of_a_disk_is_no_nicety(tmp_path):
    code = """
        import sys
        from ssl_jax.runtime import files
        files.write_text(sys.argv[1], "")
    """
    environment = refusals.environment(**refusals.refuse("sync", errno.EIO, tmp_path))
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "file")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "Input/output error" in done.stderr
    assert not list(tmp_path.iterdir())


# --- Data


def data_run(code: str, *arguments, **variables: str) -> subprocess.CompletedProcess:
    """Runs code that reads data; `attempt` prints what comes of a call, or the sentence that it ends in."""
    head = """
        import os, sys
        from ssl_jax.data import folders, pipeline, sources, videos
        from ssl_jax.runtime import files
        from ssl_jax.runtime.errors import InputError
        files.PAUSE_SECONDS = 0.0
        place = sys.argv[1]
        def attempt(call):
            try:
                print(call())
            except InputError as error:
                print(error)
        def refuse(calls, number, path=""):
            os.environ |= {"REFUSED_CALLS": calls, "REFUSED_ERRNO": str(number), "REFUSED_PATH": path}
        if __name__ == "__main__":
    """
    body = textwrap.indent(textwrap.dedent(code), "    ")
    path = arguments[0].parent / "program.py"
    path.write_text(textwrap.dedent(head) + body)
    environment = refusals.environment(XDG_CACHE_HOME=str(path.parent / "cache"), **variables)
    command = [sys.executable, str(path), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def pictures(tmp_path):
    """A folder of 400 pictures in two class folders."""
    image = Image.new("RGB", (32, 32))
    for number in range(400):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return tmp_path / "pictures"


def test_picture_on_file_server_that_is_away_is_no_bad_picture(pictures):
    code = """
        found = sources.make(name="folder", path=place)
        source = found.open("train")
        options = dict(batch_size=8, image_size=(32, 32))
        def train(workers):
            batches = pipeline.train_batches(
                source, pipeline.TrainOptions(seed=0, workers=workers, max_bad_share=1.0, **options)
            )
            for _ in range(50):
                next(batches)
            return batches.skipped.counts()
        evaluate = lambda: len(pipeline.load_arrays(source, pipeline.EvaluationOptions(**options))["index"])
        for number in (116, 5, 24):
            refuse("open" if number != 5 else "read", number, "a/07")
            attempt(lambda: train(0))
        attempt(evaluate)
        attempt(lambda: train(1))
        refuse("open", 13, "a/070")  # A picture that may never be read is one that cannot be used.
        attempt(evaluate)
        refuse("list,stat", 116, "pictures/b")
        attempt(lambda: folders.make(path=place))
        refuse("stat", 107, "pictures")
        attempt(lambda: folders.make(path=place))
    """
    done = data_run(code, pictures)
    assert done.returncode == 0, done.stderr
    *five, number, listed, whole = done.stdout.splitlines()
    for sentence, words in zip(
        five, ["Stale", "Input/output", "Too many", "Too many", "Too many"], strict=True
    ):
        assert re.match(rf"{pictures} train.*: a/07\d\.png {NOW.format(words)}", sentence), sentence
    assert int(number) == 391
    assert re.match(f"{pictures}/b {NOW.format('Stale')}", listed)
    assert re.match(f"{pictures} {NOW.format('Transport endpoint')}", whole)
    assert "Skipped unreadable" in done.stderr
    assert done.stderr.count("Skipped") == 1


@pytest.fixture
def some_videos(tmp_path):
    for name in ("a.mp4", "b.mkv", "c.avi", "d.webm"):
        codec = {"c.avi": "mpeg4", "d.webm": "libvpx"}.get(name, "libx264")
        films.write(tmp_path / "videos" / name, codec=codec, size=(256, 384), content=films.moving)
    return tmp_path / "videos"


def test_video_on_file_server_that_is_away_is_no_bad_video(some_videos):
    code = """
        import os
        paths = sorted(os.listdir(place))
        found = lambda: [row.get("frames", row.get("cause")) for row in videos.look_into(place, paths)]
        for name in paths:
            refuse("open", 116, name)
            attempt(found)
            refuse("read", 5, name)
            attempt(found)
        refuse("", 0)
        attempt(found)
        source = sources.make(name="videos", path=place).contents
        for name in paths:
            refuse("read", 5, name)
            index = 40 * paths.index(name) + 20
            size = dict(image_size=(8, 8), min_size=(1, 1))
            attempt(lambda: pipeline.read_picture(index, None, source=source, **size).bad)
    """
    done = data_run(code, some_videos)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    names = sorted(path.name for path in some_videos.iterdir() if path.suffix)
    for name, opening, reading in zip(names, lines[0:8:2], lines[1:8:2], strict=True):
        assert re.match(f"{some_videos}/{name} " + NOW.format("Stale"), opening), opening
        assert re.match(f"{some_videos}/{name} " + NOW.format("Input/output"), reading), reading
    assert lines[8] == "[40, 40, 40, 40]"  # No manifest says otherwise.
    for name, sentence in zip(names, lines[9:], strict=True):
        assert re.match(rf".*{name}.* cannot be read now", sentence), sentence


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_video_whose_server_goes_away_amid_reading_is_not_cut_short(tmp_path, suffix):
    path = tmp_path / "videos" / f"a.{suffix}"
    noise = lambda number, size: np.random.default_rng(number).integers(256, size=(*size, 3), dtype=np.uint8)
    films.write(path, codec="mjpeg", pixels="yuvj420p", size=(256, 384), content=noise)
    code = """
        attempt(lambda: videos.probe(place, sys.argv[2]).get("frames"))
        refuse("", 0)
        attempt(lambda: videos.probe(place, sys.argv[2]).get("frames"))
    """
    done = data_run(code, path.parent, path.name, **refusals.refuse("read", errno.EIO, path.name, after=20))
    assert done.returncode == 0, done.stderr
    sentence, frames = done.stdout.splitlines()
    assert re.match(f"{path} " + NOW.format("Input/output"), sentence)
    assert frames == "40"


# --- A disk that is full


def mounted(place, size: str, command: list[str], **variables: str) -> subprocess.CompletedProcess:
    """Runs a command with a file system of its own, of this size, mounted at a place."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("a small file system of our own cannot be mounted here")
    mount = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    environment = os.environ | {"PYTHONPATH": str(refusals.ROOT), "XLA_FLAGS": ""} | variables
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, str(place), *command],
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("size", "said"), [("64k", "has 0 kB of 65 kB left"), ("300k", "for a batch (SIGBUS)")]
)
def test_shared_memory_too_small_for_workers_is_a_sentence(pictures, size, said):
    code = """
        import sys
        from ssl_jax.data import pipeline, sources
        from ssl_jax.runtime.errors import InputError
        if __name__ == "__main__":
            source = sources.make(name="folder", path=sys.argv[1]).open("train")
            options = pipeline.TrainOptions(seed=0, workers=1, batch_size=100, image_size=(32, 32))
            batches = pipeline.train_batches(source, options)
            try:
                for _ in range(20):
                    next(batches)
            except InputError as error:
                print(error)
    """
    path = pictures.parent / "program.py"
    path.write_text(textwrap.dedent(code))
    done = mounted("/dev/shm", size, [sys.executable, str(path), str(pictures)])
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    for word in ("/dev/shm", "--shm-size", "set config.data.workers to 0"):
        assert word in done.stdout
    assert "Traceback" not in done.stderr


def test_full_disk_without_a_path_in_the_error_is_named(tmp_path):
    code = """
        import os
        from ssl_jax.runtime import config
        def main(argv):
            with open(os.environ["TMPDIR"] + "/file", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
        config.run_app(main)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = mounted(tmp_path, "200k", command, TMPDIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: no disk space is left \(No space left on device\): (.* left, )?"
        rf"{tmp_path} has 0 kB of 204 kB left(, .* left)?; free some and run this again\n",
        done.stderr,
    )


# --- Conclusions from files that cannot be read now


def test_file_that_cannot_be_read_now_is_neither_missing_nor_broken(tmp_path):
    code = """
        import json
        from pathlib import Path
        from launch import sweep
        from ssl_jax.data import dfdc, manipulated_clips, sources
        from ssl_jax.networks import weights
        from ssl_jax.report import page
        from ssl_jax.runtime import config, metrics
        place = Path(place)
        run = sweep.Run("run", {}, 0, (), config.ConfigDict())
        stand_in = dict(num_originals=1, fakes_per_original=1, frames=1, seed=0)
        calls = {
            "run/results.json": lambda: sweep.is_finished(run, place),
            "run/config.json": lambda: page.read(place / "run"),
            "run/metrics.jsonl": lambda: metrics.read(place / "run" / "metrics.jsonl"),
            "encoder.npz": lambda: weights.read(place / "encoder.npz"),
            "encoder.safetensors": lambda: weights.read(place / "encoder.safetensors"),
            "videos/metadata.json": lambda: dfdc._read_metadata(str(place), "videos"),
            "stand_in/": lambda: manipulated_clips.build(str(place / "stand_in"), **stand_in),
            "tfds": lambda: sources.make(name="mnist", data_dir=str(place / "tfds")),
            "config.py": lambda: config.load(str(place / "config.py")),
            "run/checkpoints": lambda: config.claim_workdir(place / "run", config.ConfigDict({"seed": 2})),
        }
        for path, call in calls.items():
            os.environ |= {"REFUSED_CALLS": "open,list,stat", "REFUSED_ERRNO": "116", "REFUSED_PATH": path}
            try:
                print(path, call())
            except InputError as error:
                print(error)
            except OSError as error:  # What `run_app` says of it.
                print(config._explain(error))
    """
    for name in (
        "run/results.json",
        "run/config.json",
        "videos/metadata.json",
        "stand_in/manipulated_clips.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"seed": 1}')
    for name in ("run/metrics.jsonl", "encoder.npz", "encoder.safetensors", "config.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "tfds").mkdir()
    done = run(code, tmp_path, **refusals.refuse("", 0))
    assert done.returncode == 0, done.stderr
    sentences = done.stdout.splitlines()
    assert len(sentences) == 10
    for sentence in sentences:
        assert "Stale file handle" in sentence
        assert re.search(r"cannot be (read now|read|used)\b", sentence)
        assert not re.search(
            r"download it again|unpack it|not prepared|damaged|does not (exist|hold)|another", sentence
        )
    assert (tmp_path / "run" / "config.json").read_text() == '{"seed": 1}'


def test_video_that_ffmpeg_cannot_read_is_broken_where_the_system_can(some_videos):
    code = """
        import av, errno
        class Container:
            name = place + "/a.mp4"
            def demux(self, stream):
                raise av.error.OSError(errno.EIO, "as of a broken file")
        attempt(lambda: [*videos.demux(Container(), None)])
        source = sources.make(name="videos", path=place).contents
        def fail(*arguments):
            raise av.error.OSError(errno.EIO, "as of a broken file")
        videos.read_frames = fail
        size = dict(image_size=(8, 8), min_size=(1, 1))
        attempt(lambda: pipeline.read_picture(0, None, source=source, **size).bad[1])
    """
    done = data_run(code, some_videos)
    assert done.stdout == "[None]\nunreadable\n", done.stderr
