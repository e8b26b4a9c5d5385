"""Dynamics from images: rendered systems, and the Hamiltonian Generative Network that learns their motion from pixels."""
