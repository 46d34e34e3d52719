"""The CPU backend: Python's side of the native library. `headrace.backends.cpu.backend.load` builds one."""
