"""See the module docstrings."""

__all__: list[str] = []
