"""Errors whose message is one sentence for the reader of a notebook."""

import unicodedata


class DataError(ValueError):
    """The data cannot be used; the message says what is wrong, where, and how to fix it."""

    def __init__(self, message: str) -> None:
        """message: may contain names of files."""
        super().__init__(printable(message))


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""

    def __init__(self, message: str) -> None:
        """message: may contain names of files."""
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Replace control characters and bytes that are not text: the names of files may contain both."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c).startswith("C") else c for c in text)
