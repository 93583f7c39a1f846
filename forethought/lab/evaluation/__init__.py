"""Evaluation: the benefit of thinking at held-out positions, for checkpoints that share a vocabulary.

    request       the eval request, and what all checkpoints share: prompt, sampling, corpus
    splits        the evaluated positions: by entropy, by marks, noise
    questions     the queries, the same for every checkpoint
    study         every checkpoint's answers, graded by bytes
    patterns      the reasoning patterns of a thought, by keywords
    pass_at_k     the probability that at least one of k thoughts helps
    figures       all metrics of one split
    quartiles     where thoughts help: the gain by entropy, surprise and spread
    scaling       accuracy as a power law of the training compute (forethought.run.cost)
    summary, table, drawing   eval.json, the terminal, eval.png

Design: all checkpoints see the same positions and the same random numbers, so that comparisons are
paired, and differences are much more precise than the metrics themselves. The price: they must share a
vocabulary, and positions are chosen by one proxy rather than by each model's own uncertainty.
"""
