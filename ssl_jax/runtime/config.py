"""Configs: what follows the colon, every key checked, one work directory for one config.

Nothing here imports jax, so that a mistyped flag is answered at once. Every error is an
`InputError` of one sentence.
"""

import contextlib
import datetime
import difflib
import errno
import importlib.util
import inspect
import json
import os
import re
import signal
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from ssl_jax.runtime import files, memory, output, paths
from ssl_jax.runtime.errors import InputError

Built = TypeVar("Built")

CONFIG_FILE = "config.json"
RESULTS_FILE = "results.json"
CHANGES_FILE = "config_changes.jsonl"  # what a resumed run has changed in `CONFIG_FILE`
# Keys of a whole config that `main` reads: how a run is watched, see `watching.under_watch`. They change no
# number, so no experiment reads them, and a run may go on with others.
WATCH_KEYS = ("profile", "watchdog_seconds")
ABSENT = "(absent)"  # what stands for the value of a key that a config lacks


# --- What follows the colon


def parse_arg(
    arg: str | None, *, presets: Sequence[str], **options: Any
) -> tuple[str, types.SimpleNamespace]:
    """Reads the text after the colon of `--config=f.py:paper,policy=uniform`.

    Args:
      arg: comma-separated items: at most one preset, the others `option=value`; None or "" for
        the defaults.
      presets: the presets that the config knows besides "default".
      **options: the options and their defaults. A value is read as the type of its default (str,
        bool, int or float); a tuple lists the allowed values, the default first.

    Returns:
      The preset ("default" where none is given), and the options as attributes.

    Raises:
      InputError: a preset or option that is not known or given twice, or a value of another type.
    """
    presets = list(dict.fromkeys(["default", *presets]))
    values = {name: _first(default) for name, default in options.items()}
    preset, given = None, set()
    for item in arg.split(",") if arg else []:
        name, equals, text = item.partition("=")
        if not equals:
            if preset is not None:
                raise InputError(f"two presets are given, {preset!r} and {item!r}; one is allowed")
            check_known("preset", item, presets)
            preset = item
        else:
            check_known("option", name, options)
            if name in given:
                raise InputError(f"option {name!r} is given twice")
            values[name] = _parse_option(name, text, options[name])
            given.add(name)
    return preset or "default", types.SimpleNamespace(**values)


def _first(default: Any) -> Any:
    return default[0] if isinstance(default, tuple) else default


def _parse_option(name: str, text: str, default: Any) -> Any:
    kind = type(_first(default))
    try:
        if kind is bool:
            value = {"true": True, "false": False}[text.lower()]
        else:
            value = kind(text)
    except (KeyError, ValueError):
        raise InputError(f"option {name} must be {kind.__name__}, not {text!r}") from None
    if isinstance(default, tuple):
        check_known(f"value of option {name}:", value, default)
    return value


def check_known(kind: str, name: Any, known: Iterable[Any]) -> None:
    """Raises InputError, with the closest known name, where a name is not among the known ones.

    Args:
      kind: what the name is of, for the sentence ("preset", "data set").
      name: what was given.
      known: what could have been given.
    """
    known = list(known)
    if name in known:
        return
    close = closest(str(name), map(str, known))
    hint = f", did you mean {close!r}?" if close else ";"
    listing = ", ".join(map(str, known)) if known else "none"
    raise InputError(f"unknown {kind} {name!r}{hint} known: {listing}")


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was most likely meant, or None.

    Capitals and underscores make no difference, nor do a namespace in front, a version at the end and words
    after a known name: `pong`, `ALE/Pong-v5` and `PongNoFrameskip-v4` are closest to `Pong`.
    """
    plain = lambda text: re.sub(r"_|-v\d+$", "", text).lower()
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return close[0]
    by_plain = {plain(one): one for one in known}
    bare = plain(name.rpartition("/")[2])
    begun = [one for one in by_plain if len(one) > 2 and bare.startswith(one)]
    close = difflib.get_close_matches(bare, by_plain, n=1) or sorted(begun, key=len)[-1:]
    return by_plain[close[0]] if close else None


def check_seed(seed: int) -> None:
    """Raises InputError for a seed that not every generator of random numbers takes."""
    if seed < 0:
        raise InputError(f"config.seed must be at least 0, not {seed}")


# --- Sections of a config against the builders that read them


def unpack(
    section: Mapping[str, Any],
    builder: Callable[..., Any],
    *,
    path: str,
    ignore: Collection[str] = (),
) -> dict[str, Any]:
    """Checks a section of a config against the arguments of the builder that reads it.

    Args:
      section: keys and values, from the config.
      builder: a function or dataclass whose arguments are annotated with bool, int, float, str,
        tuple[...], Literal[...], Mapping, Any, `paths.UserPath`, or a union of these with None.
      path: where the section is in the config ("encoder", "train.optimizer"; "" for all of it).
      ignore: arguments of the builder that come from elsewhere, and so are no keys of the config.

    Returns:
      Keyword arguments for the builder: lists became tuples, ints became floats where the builder
      asks for them, and paths were read by `paths.read`. Arguments with a default may be absent.

    Raises:
      InputError: an unknown key, a missing key, a value of the wrong type, or a path that is none here.
    """
    where = f"config.{path}" if path else "config"
    if not isinstance(section, Mapping | ConfigDict):
        raise InputError(f"{where} must be a section with keys, not {section!r}")
    hints = typing.get_type_hints(builder)
    known = {
        name: parameter
        for name, parameter in inspect.signature(builder).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and name not in ignore
    }
    section = {key: value for key, value in section.items() if path or key not in WATCH_KEYS}
    for key in section:
        check_known("key", f"{where}.{key}", [f"{where}.{name}" for name in known])
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in section:
            raise InputError(f"{where}.{name} is missing; it must be {_spell(hints[name])}")
    return {key: _checked(section[key], hints[key], f"{where}.{key}") for key in section}


def build(
    builder: Callable[..., Built],
    section: Mapping[str, Any],
    *,
    path: str,
    ignore: Collection[str] = (),
    **known: Any,
) -> Built:
    """Builds what a section of a config describes.

    Args:
      builder: see `unpack`. It says of a value that does not fit what would be right, and need not know where
        in the config it is.
      section: keys and values, from the config.
      path: where the section is in the config.
      ignore: arguments of the builder that keep their defaults, and are no keys of the config.
      **known: arguments of the builder that come from elsewhere, and are no keys either.

    Raises:
      InputError: see `unpack`; or what the builder says, with the key, see `errors_of`.
    """
    options = unpack(section, builder, path=path, ignore=(*ignore, *known))
    with errors_of(path):
        return builder(**options, **known)


@contextlib.contextmanager
def errors_of(path: str) -> Iterator[None]:
    """Adds to an InputError from inside which section of the config it is about.

    A sentence that begins with a key ("grid=(1, 1) must have ...", "grid must have ...") gets the path before
    it ("config.spatial.puzzle.grid=(1, 1) must have ..."), another one the section
    ("config.data: there is no ..."); one that names a key of the config at its beginning stays as it is.
    """
    try:
        yield
    except InputError as error:
        sentence, where = str(error), f"config.{path}"
        if re.match(r"(--)?config\b", sentence):
            raise
        if re.match(r"[a-z]\w*(=| must )", sentence):
            raise InputError(f"{where}.{sentence}") from None
        if re.match(r"(No|None|Nothing|The|There) ", sentence):
            sentence = sentence[0].lower() + sentence[1:]
        raise InputError(f"{where}: {sentence}") from None


def _checked(value: Any, hint: Any, where: str) -> Any:
    """The value as the annotation wants it; InputError where it does not fit."""
    try:
        value = _convert(value, hint)
    except TypeError:
        raise InputError(f"{where} must be {_spell(hint)}, not {value!r}") from None
    is_path = paths.UserPath in (hint, *typing.get_args(hint)) and value is not None
    return paths.read(value, where) if is_path else value


def _convert(value: Any, hint: Any) -> Any:
    hint = str if hint is paths.UserPath else hint
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, args)
    if origin is typing.Literal:
        fits = any(value == choice and type(value) is type(choice) for choice in args)
    elif hint is float and type(value) is int:
        return float(value)
    elif hint is tuple or origin is tuple:
        return _convert_tuple(value, args)
    elif origin is Mapping or hint is Mapping or origin is dict or hint is dict:
        fits = isinstance(value, Mapping | ConfigDict)
    else:  # `type() is` and not isinstance, for a bool is no int
        fits = type(value) is hint
    if not fits:
        raise TypeError
    return value


def _convert_union(value: Any, members: tuple[Any, ...]) -> Any:
    if value is None and types.NoneType in members:
        return None
    for member in sorted(members, key=lambda member: member is not type(value)):
        try:
            return _convert(value, member)
        except TypeError:
            continue
    raise TypeError


def _convert_tuple(value: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise TypeError
    if not args:
        return tuple(value)
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise TypeError
    return tuple(_convert(item, arg) for item, arg in zip(value, args, strict=True))


def _spell(hint: Any) -> str:
    if hint is types.NoneType:
        return "None"
    if hint is paths.UserPath:
        return "str"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(map(_spell, typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


# --- Config files and flags


def load(path_and_arg: str, overrides: Mapping[str, Any] | Sequence[str] = ()) -> ConfigDict:
    """Loads a config as the command line does.

    Args:
      path_and_arg: "configs/jigsaw_rl.py" or "configs/jigsaw_rl.py:paper,policy=uniform".
      overrides: {"train.steps": 3} or ["train.steps=3"].

    Returns:
      The locked config.

    Raises:
      InputError: as `parse_flags`.
    """
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={value}" for key, value in overrides.items()]
    argv = ["load", f"--config={path_and_arg}", *(f"--config.{item}" for item in overrides)]
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=flag_values, sys_argv=argv)
    parse_flags(argv, flag_values)
    return flag_values.config


def parse_flags(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the flags of a program that has a `--config` flag (an absl `flags_parser`).

    ml_collections loads the config file while absl parses flags, and what goes wrong there
    reaches the user late, wrapped, or not at all; so the config is checked by itself first.

    Raises:
      InputError: a config file that is missing, broken or without `get_config`; whatever
        `get_config` raises as InputError; an override of an unknown key or with a wrong type; an
        unknown flag; an argument that is no flag.

    Returns:
      The name of the program, which is all that is left.
    """
    argv = _with_config_path_read(argv)
    path_and_arg, overrides = _config_flags_in(argv)
    kinds = {}
    if path_and_arg is not None:
        config = _call_get_config(path_and_arg)
        kinds = {f"config.{key}": _type_at(config, key) for key in overrides}
    elif overrides:
        raise InputError(f"--config.{overrides[0]} needs --config=FILE before it")
    try:
        rest = flag_values(list(argv))
    except flags.Error as error:
        sentence = " ".join(str(error).split())
        sentence = re.sub(r"^flag (--\w+)=.*: (?=\1=)", "", sentence)  # one that names the flag itself
        for name, kind in kinds.items():
            if sentence.startswith(f"flag --{name}="):
                sentence = f"{name} must be {kind.__name__} ({sentence})"
        raise InputError(sentence) from None
    if rest[1:]:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are given as --name=value")
    return rest


def _with_config_path_read(argv: Sequence[str]) -> list[str]:
    """The arguments with the path of `--config` as `paths.read` has it; shells leave a ~ after = alone."""
    argv = list(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    for i in range(1, end):
        match = re.fullmatch(r"(--?config=)(.+)", argv[i], flags=re.DOTALL)
        if match:
            argv[i] = match[1] + paths.read(match[2], "--config")
        elif argv[i - 1] in ("-config", "--config"):
            argv[i] = paths.read(argv[i], "--config")
    return argv


def _config_flags_in(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `--config`, and the dotted keys of all `--config.key=value`."""
    files, keys = [], []
    for i, arg in enumerate(argv):
        match = re.fullmatch(r"--?(?:no)?config(\.[^=]*)?(?:=(.*))?", arg, flags=re.DOTALL)
        if arg == "--":
            break
        if not match:
            continue
        if match[1]:
            keys.append(match[1][1:])
        else:
            files.append(match[2] if match[2] is not None else "".join(argv[i + 1 : i + 2]))
    if len(files) > 1:
        raise InputError(f"--config is given twice, {files[0]!r} and {files[1]!r}")
    return (files[0] if files else None), keys


def _call_get_config(path_and_arg: str) -> ConfigDict:
    file, *args = path_and_arg.split(":", 1)
    if not files.exists(file) or not os.path.isfile(file):
        raise _missing_config_file(file)
    module = _import_config(file)
    if not callable(getattr(module, "get_config", None)):
        raise InputError(f"config file {file} has no function get_config(arg)")
    try:
        inspect.signature(module.get_config).bind(*args)
    except TypeError as error:
        raise InputError(f"get_config in {file} does not take {args}: {error}") from None
    config = module.get_config(*args)
    if not isinstance(config, ConfigDict):
        raise InputError(f"get_config in {file} must return a ConfigDict, not {config!r}")
    return config


def _import_config(file: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("ssl_jax_config", file)
    if spec is None:
        raise InputError(f"config file {file} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        files.decode_text(Path(file).read_bytes(), file)  # Raises for UTF-16.
        raise InputError(
            f"config file {file} is not valid Python, line {error.lineno}: {error.msg}"
        ) from None
    return module


def sibling(file: str, name: str) -> types.ModuleType:
    """The module of the config file `name` beside the config file `file`, to build one config on another."""
    return _import_config(str(Path(file).parent / name))


def list_configs(directory: str | Path = "configs") -> list[str]:
    """The config files in a directory, sorted: ["configs/jigsaw_rl.py", ...]."""
    return sorted(str(path) for path in Path(directory).glob("*.py") if path.name[0] != "_")


def _missing_config_file(file: str) -> InputError:
    known = list_configs() + list_configs(os.path.dirname(file) or ".")
    # Names and not paths are compared: the directories may be alike when the names are not.
    by_name = {Path(path).stem: path for path in known}
    close = difflib.get_close_matches(Path(file).stem, by_name, n=1)
    hint = f", did you mean {by_name[close[0]]}?" if close else ""
    listing = f"; known: {', '.join(list_configs())}" if list_configs() and not close else ""
    return InputError(f"config file {file!r} does not exist{hint}{listing}")


def _type_at(config: ConfigDict, key: str) -> type:
    """The type of the value at a dotted key that a flag overrides."""
    node = config
    for name in key.split("."):
        if not isinstance(node, ConfigDict) or name not in node:
            raise _unknown_key(config, key)
        holder, node = node, node[name]
    kind = holder.get_type(name)
    if kind is types.NoneType:
        raise InputError(
            f"config.{key} is None and has no type, so no flag can set it; in the config file, "
            "make it ml_collections.config_dict.placeholder(int), or of the type that it has"
        )
    return kind


def _unknown_key(config: ConfigDict, key: str) -> InputError:
    known = sorted(path for path, _ in _flatten(config.to_dict()))
    # `steps` for `train.steps` is meant more often than a key that is spelled alike.
    inside = [path for path in known if path.endswith("." + key)]
    close = inside or difflib.get_close_matches(key, known, n=1)
    if close:
        return InputError(f"unknown key config.{key}, did you mean config.{close[0]}?")
    return InputError(f"unknown key config.{key}; known: {', '.join(known)}")


def run_app(main: Callable[[list[str]], None], *, output_required: bool = False) -> None:
    """Runs a program on absl flags; what its user can mend ends in one line and status 2.

    Args:
      main: called with what is left of `sys.argv` once the flags are parsed.
      output_required: whether the program is run for what it prints. Then it ends when nobody reads that
        any more, as `head` expects, and with an error where it cannot be written; others go on without.
    """
    output.guard(required=output_required)
    memory.keep_freed()
    try:
        try:
            app.run(main, flags_parser=_parse_flags_of_app)
        finally:
            sys.stdout.flush()
    except InputError as error:
        sys.exit(_complain(str(error)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except output.LostOutput as lost:
        if lost.error.errno == errno.EPIPE:
            sys.exit(128 + signal.SIGPIPE)
        sys.exit(_complain(f"standard output cannot be written ({lost}); send it elsewhere"))
    except OSError as error:
        sentence = _explain(error)
        if sentence is None:
            raise
        sys.exit(_complain(sentence))


def _explain(error: OSError) -> str | None:
    """What a person can do about an error of the system that no code has met; None if nobody knows."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = "" if error.filename else files.describe_full(_places())
        return f"no disk space is left ({files.explain(error)}){where}; free some and run this again"
    if error.errno == errno.EROFS:
        return f"the disk can only be read ({files.explain(error)}); mend that and run this again"
    if error.filename and (reason := files.unavailable(error)):
        return (
            f"a file cannot be used now ({reason}); what is on disk stays, so correct that and run this again"
        )
    return None


def _places() -> list[str]:
    """Directories that a program writes to."""
    given = [flags.FLAGS[name].value for name in ("workdir",) if name in flags.FLAGS]
    temporary = os.environ.get("TMPDIR", "/tmp")  # Python's own answer leaves out what is full
    return [*filter(None, given), ".", temporary, os.path.expanduser("~"), "/dev/shm"]


def _complain(sentence: str) -> int:
    logging.flush()
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


def _parse_flags_of_app(argv: Sequence[str]) -> list[str]:
    try:
        rest = parse_flags(argv)
    except SystemExit:  # --help and its kin have printed; absl would call that a failure
        sys.exit(0)
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = logging.WARNING  # absl's default is INFO, where orbax is loud
    return rest


# --- Work directories


def default_workdir(path_and_arg: str) -> Path:
    """Where a config runs when `--workdir` is not given; other presets run in other places.

    "configs/jigsaw_rl.py" -> runs/jigsaw_rl
    "configs/jigsaw_rl.py:paper,policy=uniform" -> runs/jigsaw_rl-paper-policy=uniform
    """
    file, _, arg = path_and_arg.partition(":")
    name = "-".join([Path(file).stem, *(item for item in arg.split(",") if item)])
    return Path("runs") / re.sub(r"[^\w.=+-]", "_", name)


class Length(NamedTuple):
    """The key that says how long a run is, which may be raised to make a run longer that has ended.

    Attributes:
      key: "train.steps".
      fixed: why it may not, as a clause ("the learning rate ..."); None where it may: nothing that was done
        before the end depends on where the end is.
    """

    key: str
    fixed: str | None = None


def claim_workdir(
    workdir: str | Path, config: ConfigDict, *, may_change: Collection[str] = (), length: Length | None = None
) -> Path:
    """Makes a work directory the home of one config, or finds that it is already.

    Writes `config.json` where there is none. The same config may claim it again (to resume), and no other,
    for then the numbers inside would mix two experiments: only keys that change no number may differ. Those
    are written by `keep_changes`, once the run goes on. A run that ended before it had any numbers, because
    its data set was missing, say, has no claim left.

    Args:
      workdir: the directory.
      config: of the run.
      may_change: keys that may differ from those in `config.json`.
      length: the key that may also be raised, or why it may not.

    Returns:
      The directory, which exists and can be written.

    Raises:
      InputError: it belongs to another config (the sentence names the differing keys), holds a
        run without `config.json`, or cannot be written.
    """
    workdir = Path(workdir)
    path = workdir / CONFIG_FILE
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        left = _left_by_run(workdir)
        if not files.exists(path):
            for name in left:
                raise InputError(
                    f"{workdir} holds {name} but no {CONFIG_FILE}, so its config is "
                    "not known; choose another --workdir"
                )
            save(path, config)
            return workdir
        with tempfile.TemporaryFile(dir=workdir):
            pass  # a run that resumes must be able to write as well
    except OSError as error:
        raise InputError(f"work directory {workdir} cannot be used: {files.explain(error)}") from None
    changed = _changes(read(path), config)
    if changed and not left:
        save(path, config)
        return workdir
    refused = {key: values for key, values in changed.items() if key not in may_change}
    if length is not None and _is_raised(refused.get(length.key)):
        if length.fixed is not None:
            before, after = refused[length.key]
            raise InputError(
                f"the run in {workdir} cannot be made longer (config.{length.key}: {before} -> {after}), "
                f"because {length.fixed}; choose another --workdir"
            )
        del refused[length.key]
    lines = _lines(refused)
    if lines:
        more = f" and {len(lines) - 8} more" if len(lines) > 8 else ""
        raise InputError(
            f"work directory {workdir} belongs to another config: "
            f"{'; '.join(lines[:8])}{more}; choose another --workdir"
        )
    return workdir


def keep_changes(workdir: Path, config: ConfigDict, length: Length | None = None) -> None:
    """Writes the config of a run that goes on, where it differs from the one that the directory has.

    The former values are appended to `config_changes.jsonl`, with the newest checkpoint and the time:
    {"step": int or None, "time": str, "changes": {key: [before, after]}}. The results of a run that is made
    longer stay under the name of its former length: `results_100.json`.
    """
    changed = _changes(read(workdir / CONFIG_FILE), config)
    if not changed:
        return
    steps = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = {"step": max(steps, default=None), "time": now, "changes": changed}
    with open(workdir / CHANGES_FILE, "a") as file:
        file.write(json.dumps(line) + "\n")
    results = workdir / RESULTS_FILE
    if length is not None and length.key in changed and results.exists():
        results.rename(results.with_stem(f"{results.stem}_{changed[length.key][0]}"))
    save(workdir / CONFIG_FILE, config)


def _is_raised(values: tuple[Any, Any] | None) -> bool:
    return values is not None and all(type(value) is int for value in values) and values[0] < values[1]


def _left_by_run(workdir: Path) -> list[str]:
    """What there is in a work directory that a run has worked for."""
    files_of_run = [name for name in ("metrics.jsonl", RESULTS_FILE) if files.exists(workdir / name)]
    try:
        return files_of_run + os.listdir(workdir / "checkpoints")
    except FileNotFoundError:
        return files_of_run


def save(path: str | Path, config: ConfigDict) -> None:
    """Writes a config as JSON; the file is there whole or not at all."""
    files.write_text(path, json.dumps(config.to_dict(), indent=2) + "\n")


def read(path: str | Path) -> ConfigDict:
    """Reads a config that `save` wrote; its tuples have become lists.

    Raises:
      InputError: the file cannot be read, or holds no config.
    """
    try:
        return ConfigDict(json.loads(files.decode_text(files.try_twice(Path(path).read_bytes), path)))
    except InputError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a config ({error})") from None


def difference(old: ConfigDict, new: ConfigDict, may_change: Collection[str] = ()) -> list[str]:
    """Lines like "train.steps: 100 -> 200" for every key in which two configs differ.

    Left out are `WATCH_KEYS` and `may_change`. A tuple and a list of the same items are equal, for JSON
    cannot tell them apart.
    """
    return _lines({key: values for key, values in _changes(old, new).items() if key not in may_change})


def _lines(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    spell = lambda value: value if value == ABSENT else json.dumps(value)
    return [f"{key}: {spell(before)} -> {spell(after)}" for key, (before, after) in changed.items()]


def _changes(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Key -> value before and after, for every key in which two configs differ, but for `WATCH_KEYS`."""
    # Through JSON on both sides, so that a config equals itself read back.
    old, new = (dict(_flatten(json.loads(json.dumps(c.to_dict())))) for c in (old, new))
    values = {key: (old.get(key, ABSENT), new.get(key, ABSENT)) for key in dict.fromkeys([*old, *new])}
    return {
        key: pair
        for key, pair in values.items()
        if key not in WATCH_KEYS and json.dumps(pair[0]) != json.dumps(pair[1])
    }


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
