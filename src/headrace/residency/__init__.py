"""Which models are in memory: a policy without threads, files or a clock of its own."""

from headrace.residency.policy import Load, Residency, Resident, State, Unload
from headrace.residency.shares import Footprint, kv_shares

__all__ = ["Footprint", "Load", "Residency", "Resident", "State", "Unload", "kv_shares"]
