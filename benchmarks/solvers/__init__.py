"""Solvers beside their peers: error against the exact probability-flow ODE, and time per step beyond the network."""
