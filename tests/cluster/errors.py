"""What stops a command of this folder with one message and no traceback."""


class ClusterError(Exception):
    """The machine lacks something, or a component did not come up; the message says what to do."""
