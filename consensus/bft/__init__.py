"""A Byzantine-tolerant vote on one value: one-shot Simplex.

What is Byzantine-tolerant here is the decision of one round: with n >= 3f + 1 validators, f of which may lie, forge,
equivocate or stay silent, no two honest validators decide differently, and a certificate proves the decision to anyone
who has the public keys. What is only crash-tolerant is everything around it: which validators a round has, and where
its certificate is kept, is fixed through the Raft log, whose members trust each other not to lie.
"""
