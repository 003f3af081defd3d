"""The error a user can mend."""


class UserError(Exception):
    """A user's mistake: the message says what is wrong and where, what was expected and what to do."""
