"""`cattn bench`: cattn beside NumPy and the engines that the user names.

cases    the problems, their arrays, and the answers that engines must give
engines  who computes them: cattn, NumPy, PyTorch, a function of the user's
load     what other programs take of the processors meanwhile
timing   engines side by side, in rounds that nobody disturbs
runs     all of that, in a process that has as many threads as were asked for
record   what is kept of a run
chart    its picture

`benchmarks/` in the repository adds more problems, more engines and the machine's limits.
"""
