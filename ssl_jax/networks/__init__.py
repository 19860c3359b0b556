"""What answers: Flax Linen modules."""
