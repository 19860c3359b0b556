"""The game world: Atari behind a time step, the memory of what was played, and how it is scored."""
