"""The one exception that a user can mend."""


class InputError(ValueError):
    """Something the user gave (a flag, key, file, directory) cannot be used.

    The message is one sentence that names what was wrong and what would be right. `ssl_jax.main`
    prints it without a traceback and exits with status 2.
    """
