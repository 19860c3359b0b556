"""A run on Kubernetes: `jobset.yaml`, and `python -m launch.kubernetes`, which fills it in."""
