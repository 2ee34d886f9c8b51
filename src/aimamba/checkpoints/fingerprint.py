"""Fingerprints: one digest for equal models, wherever and in whatever file they are stored."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a config and of tensors in float32, in the order of their names, as 64 hex digits.

    Args:
        config: Plain values, as ``aimamba.config.to_mapping`` returns them.
        tensors: A state dict or a part of one, on any device.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
