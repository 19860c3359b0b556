"""One file per experiment, where loops and side effects meet; `tasks` holds what pre-training can ask."""

EXPERIMENTS = ("pretrain", "dueling_dqn", "evaluate", "deepfake")
