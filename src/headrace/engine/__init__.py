"""The heartbeat: one thread that schedules, runs and commits, and a small thread-safe face for everyone else.

`engine` is the loop, `memory` divides the memory before it starts, `recorder` is whom it reports numbers to.
"""
