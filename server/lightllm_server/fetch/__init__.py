"""`lightllm-server fetch`: a model from a hub or from S3 into a directory. No torch.

`command` runs it, `download` moves the bytes, `hub` and `s3` are what they come from, `ledger` says
what of a directory is there already, `progress` tells how far it is.
"""

from __future__ import annotations

__all__: list[str] = []
