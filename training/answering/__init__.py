"""How a saved model answers, a file for each way: hidden words, a continuation, a class, a text made of another, what
an image shows, what is hidden of it.

A way takes a `Saved`, a list of inputs, the place of the first of them among all inputs, and its options; it gives an
`Answer` for each, which can be written as JSON. What people see of an answer is the function beside it. The table by
task is in `training/prediction.py`.
"""
