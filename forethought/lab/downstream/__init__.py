"""Downstream evaluation of checkpoints by EleutherAI's lm-evaluation-harness (``lm_eval``).

    suites       which tasks the papers report, and how they sampled
    harness      a model, a suite, and ``lm_eval`` in between
    scores       means over runs, the table and the JSON
    tasks/       YAML of our own, for ``lm_eval --include_path`` too: state tracking, which needs no
                 network, and what the harness itself lacks

Design: the harness asks and grades, so that a figure means what it means elsewhere; what is added is where
a checkpoint lies, thinking before the answer, and means over several sampled runs. The price is a large
dependency, which only the ``downstream`` extra brings.
"""
