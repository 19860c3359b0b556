"""The picture world: sources and pipelines."""
