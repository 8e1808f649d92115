"""What a user can mend."""


class UserError(Exception):
    """Something asked for can't be done; the message is one sentence, and the exit status 2."""
