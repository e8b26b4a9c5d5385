"""Inversion of simulators: from observations to calibrated posteriors over parameters."""
