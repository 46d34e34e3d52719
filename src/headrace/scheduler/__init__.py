"""What to compute next. Pure: no thread, no clock (time is passed in), no tensor.

`scheduler` turns live sequences into a `Plan` and a `StepResult` into events; `queue` says whose turn it is, `sampling`
how the next token is chosen, `admission` what cannot be served at all, `tally` keeps the numbers.
"""
