"""Downstream evaluation of checkpoints by EleutherAI's lm-evaluation-harness (``lm_eval``).

    suites       the tasks that the papers report, and their sampling
    data_files   the rows of a local file
    questions    the data sets' questions, from a file or the hub, checked
    markers      the think markers of a checkpoint
    answering    the harness's model, with answers that end one by one, outside of thoughts
    harness      running a suite on a model with ``lm_eval``
    scores       means over runs, the table and the JSON
    tasks/       additional YAML tasks, also for ``lm_eval --include_path``: state tracking, which needs no
                 network, and tasks that the harness lacks

Design: the harness prompts and grades, so that a score means the same as elsewhere; this package adds
locating a checkpoint, thinking before the answer, and means over several sampled runs. The price is a
large dependency, which only the ``downstream`` extra installs.
"""
