"""Evaluation: what thinking adds at held-out positions, for several checkpoints of one vocabulary.

    request       what is asked for, and what is the same for all checkpoints: prompt, sampling, corpus
    splits        which positions are asked about: by entropy, by marks, noise
    questions     the positions, the same for every checkpoint
    study         every checkpoint's answers, graded by bytes
    patterns      which kinds of reasoning a thought shows, by keywords
    pass_at_k     the chance that one of k thoughts helps
    figures       everything measured of one split
    scaling       accuracy as a power law of the training compute (forethought.run.cost)
    summary, table, drawing   eval.json, the terminal, eval.png

Design: all checkpoints see the same positions and the same random numbers, so that they are compared in
pairs, whose differences are known far better than the figures themselves. The price: they must share a
vocabulary, and positions are chosen by one proxy and not by each model's own uncertainty.
"""
