"""The kopf operator that reconciles `LightLLMDeployment` resources."""

__all__: list[str] = []
