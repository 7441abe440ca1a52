"""The LightLLM-style serving engine and its HTTP API."""

__all__: list[str] = []
