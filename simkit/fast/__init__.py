"""The fast path of potentials: energies and forces without autograd, checked against the reference path."""
