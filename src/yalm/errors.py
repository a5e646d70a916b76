"""The one error a person can act on.

Anything a user can mend (a wrong setting, a missing file, a folder of another run) is raised as a
`YalmError` whose message is one line: what is wrong, where, and how to mend it. The command line
prints that line and exits with code 2; every other exception is a fault of ours and keeps its traceback.
"""


class YalmError(Exception):
    """One line that says what is wrong, where, and how to mend it."""
