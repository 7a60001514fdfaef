"""What can go wrong and is told in one plain sentence."""


class DataError(ValueError):
    """The data cannot be used; the message is one plain sentence: what, where, how to fix."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one plain sentence that says why and what to do."""
