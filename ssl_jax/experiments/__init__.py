"""One file per experiment: where loops and side effects meet."""
