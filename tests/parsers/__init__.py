"""Fuzzing: `stored`, `texts` and `imported` have the parsers and what each promises, `mutate` makes inputs for them.

`corpus` has inputs that the real writers made; `corpus/found` keeps every input that ever broke a promise, which is
tried first.
"""
