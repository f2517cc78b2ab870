"""Triton kernels for what lies between matrix products, attention and convolutions, and the blocks that use them."""
