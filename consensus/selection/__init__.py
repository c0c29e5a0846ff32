"""Which demos a mesh takes, as a pure function of what its validators signed.

    candidates.py   what nodes propose; byte-identical ones are one
    scores.py       commit, then reveal: signed score vectors in fixed point, and what becomes of them
    similarity.py   how alike two demos are, in fixed point
    choice.py       k of the candidates, trading quality, diversity and cost; and the digest of the result

Everything is integers and bytes: the same set in any order gives the same demos on every machine. At most f of the
n >= 3f + 1 validators may lie; what they say can't move a candidate's quality outside the range of what honest
validators said. What they can do is propose candidates of their own, and those are chosen only if honest validators
score them well.
"""
