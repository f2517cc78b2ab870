"""Checkpoints: the state of all ranks, written beside the steps, and put back at any world size."""
