"""Deduplication: exact, perceptual and semantic, with one survivor named for every dropped sample."""

from curate.dedup.survivors import near_duplicates

__all__ = ["near_duplicates"]
