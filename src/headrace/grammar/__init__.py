"""Constrained output: what was asked for → which tokens may come next, through llguidance.

Compiled on threads of its own (`compiler`), used by the step loop (`masks`). Nothing of llguidance is imported before
the first constrained request.
"""
