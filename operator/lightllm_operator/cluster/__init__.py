"""Everything that talks to the API server or to pods; nothing else in the operator does I/O."""

__all__: list[str] = []
