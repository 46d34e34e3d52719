"""What to compute next. Pure: no thread, no clock (time is passed in), no tensor.

`scheduler` is the room's face: sequences in, a `Plan` out, a `StepResult` in, events out. Behind it `planner` decides,
`queue` says whose turn it is, `roster` keeps who is live and where, `state` what is known of each, `sampling` how its
next token is chosen, `admission` what cannot be served at all, and `tally` the numbers.
"""
