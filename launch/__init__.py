"""Programs that start other programs: sweeps, and runs of several processes or hosts."""
