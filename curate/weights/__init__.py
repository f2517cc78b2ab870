"""Model weights: a registry with checksums, and the command that fetches and verifies them."""

from curate.weights.registry import (
    FORMATS,
    MissingWeights,
    UnknownWeights,
    UnpinnedWeights,
    Weight,
    WrongChecksum,
    checked_path_of,
    default_weights_dir,
    known_sha256,
    path_of,
    problem_of,
    registered,
    registry,
)

__all__ = [
    "FORMATS",
    "MissingWeights",
    "UnknownWeights",
    "UnpinnedWeights",
    "Weight",
    "WrongChecksum",
    "checked_path_of",
    "default_weights_dir",
    "known_sha256",
    "path_of",
    "problem_of",
    "registered",
    "registry",
]
