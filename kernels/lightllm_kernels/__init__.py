"""Ops of the engine: for each a torch reference, the CPU form and the launcher."""

__all__: list[str] = []
