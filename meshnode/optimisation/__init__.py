"""Improve a program's state (instructions, demos, variables) by trying candidates on the mesh.

    space       what may vary, and how far; variation: drawing, changing and crossing states
    strategies  decide, pure: which candidates come next. random, bootstrap, beam, genetic; registry: by name, third
                parties' by the entry points of group "meshnode.strategies"
    pace        at most so many program runs a second, over all candidates together
    history     what a run keeps: every candidate with its state and score, and each finished example
    optimizer   performs a strategy over a `Mesh`: the front door, `optimize`

A strategy knows no clock and no mesh: the same seed, data and scores give the same candidates. So a run is resumed by
letting its strategy decide again, with the scores that are known; nothing that finished is evaluated twice.
"""
