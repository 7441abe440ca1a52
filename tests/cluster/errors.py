"""What stops a command of this folder with one message and no traceback."""


class ClusterError(Exception):
    """The machine lacks something, or a component did not come up; the message says what to do."""


class WaitedInVainError(ClusterError):
    """What was waited for has not come about in its time."""
