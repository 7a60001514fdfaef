"""Errors whose message is one sentence for the reader of a notebook."""


class DataError(ValueError):
    """The data cannot be used; the message says what is wrong, where, and how to fix it."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""
