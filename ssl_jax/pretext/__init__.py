"""What is asked: pure (key, arrays) -> (inputs, targets)."""
