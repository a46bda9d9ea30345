"""What went wrong in a way that the user of a command can mend."""


class LabError(Exception):
    """The message says what is wrong and what to do; commands print it and end with status 2."""


class UsageError(LabError):
    """Something that the caller asked for cannot be done; the message says what to do."""
