"""Programs that start other programs: sweeps."""
