"""What can be wrong with data."""


class DataError(ValueError):
    """The data given can't be used; the message says why and what would do."""


class UnreadableImage(Exception):
    """A file that should be an image could not be decoded; the message is the decoder's reason."""
