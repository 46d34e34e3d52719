"""Block bookkeeping: which sequence holds which KV blocks, and which blocks hold a prefix worth keeping.

Integers only; no tensor, clock or thread. `pool` counts references, `prefix` finds blocks by content, `cache` puts the
two together and hands out leases, `integrity` checks the books.
"""
