"""Is it worth it to let the mesh choose demos? And what does a round cost?

python -m benchmarks.demos [--quick] [--seeds N] [--k K] [--only study|tuning|figures|sockets] [--chart PATH]

task      the docstring task: splits, a program with the embedded model behind it, the score on the dev part
drive     a round in one process: production validators, log and vote, without sockets and Raft
liars     nodes that lie, in what they propose and in what they say of others' demos
study     consensus against one node and against chance, over seeds
plot      its figure, as SVG
figures   messages, bytes, virtual time and CPU of a round with 4, 7, 31 and 100 validators
sockets   one round of four real nodes, checked against the same round in one process
"""
