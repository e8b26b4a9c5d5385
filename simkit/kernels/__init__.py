"""Compiled kernels behind the architectures, each beside its plain PyTorch reference."""
