"""cattn beside other engines: what `cattn bench` and `benchmarks/` share.

cases              the problems, as data
inputs             their arrays
answer             what should come out, and how far an engine's answer is from it
engines            who computes it: cattn, NumPy, and whatever else is installed
numpy_attention    NumPy's way of it, which every speed-up is counted against
limits             what the machine itself can do
load               what other programs take of the processors meanwhile
timing             engines side by side, in rounds that nobody disturbs
process            work in a process of its own
runs               all of that, in a process that has as many threads as were asked for
record             what is kept of a run
progress, chart    what is seen of it
"""
