"""One file per experiment, where loops and side effects meet; `tasks` holds what pre-training can ask."""

EXPERIMENTS = ("pretrain", "dueling_dqn", "evaluate", "deepfake")

_READING = (
    "data.path",
    "data.data_dir",
    "data.workers",
    "data.threads",
    "data.prefetch",
    "data.max_bad_share",
)
# Keys with which a run may be resumed that differ from those it began with, for they change neither the
# parameters nor a score: where the data set is (what is in it is checked, see `TrainBatches.set_state`), how
# it is read, when a run gives up, what is kept of it. With another `log_every` the lines of metrics.jsonl are
# means over other numbers of steps. The checkpoints of dueling_dqn are missing here: each begins new
# episodes. An evaluation has no checkpoint that knows its data.
MAY_CHANGE = {
    "pretrain": (
        *_READING,
        "data.annotations",
        "train.log_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
    ),
    "deepfake": (
        *_READING,
        "data.cache_dir",
        "train.log_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
    ),
    "dueling_dqn": ("environments.threads", "train.log_every", "train.keep_checkpoints"),
    "evaluate": (),
}
