"""A training loop for the tests that ask whether a task can be learned."""

import jax
import optax


def named(pictures, puzzle, task):
    """A question: a random class of the task, asked about pictures that are drawn for it.

    Args:
      pictures: (key, number) -> pictures or clips, uint8.
      puzzle: (key, pictures, classes, task, train=) -> inputs [B, m, h, w, 3].
      task: options of the puzzle, with `num_classes`.
    """

    def question(key, num, train):
        picture_key, index_key, puzzle_key = jax.random.split(key, 3)
        index = jax.random.randint(index_key, (num,), 0, task.num_classes)
        return puzzle(puzzle_key, pictures(picture_key, num), index, task, train=train), index

    return question


def accuracy_after_training(
    network, question, *, steps, loss=optax.softmax_cross_entropy_with_integer_labels, batch_size=32
):
    """Trains on ever new examples; returns the share of right answers to others.

    Args:
      network: module (inputs, "task", *, train) -> logits, such as a `PuzzleNetwork` with that task.
      question: (key, number of examples, train) -> inputs [B, m, h, w, 3] and classes, int32.
      steps: updates.
      loss: (logits, classes) -> float, of any shape; its mean is minimised.
      batch_size: examples of an update.
    """
    optimizer = optax.adam(3e-3)

    def answer(params, inputs):
        return network.apply(params, inputs, "task", train=False)

    def step(carry, key):
        params, opt_state = carry
        inputs, index = question(key, batch_size, True)
        gradient = jax.grad(lambda params: loss(answer(params, inputs), index).mean())(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    @jax.jit
    def run(key):
        init_key, train_key, test_key = jax.random.split(key, 3)
        inputs, index = question(test_key, 256, False)
        params = network.init(init_key, inputs[:1], "task", train=False)
        carry = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(step, carry, jax.random.split(train_key, steps))
        return (answer(params, inputs).argmax(-1) == index).mean()

    # Another generator compiles in a fraction of the time.
    return float(run(jax.random.key(0, impl="unsafe_rbg")))
