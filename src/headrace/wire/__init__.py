"""Dialects as data: a body → `Call`; what the engine made of it → chunks; a fold over the chunks → JSON. No I/O."""
