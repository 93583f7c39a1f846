"""The files of a run on disk, and how they are read.

    directory     the layout of a run directory
    files         files that outlive a power cut
    journal       every consumed batch; the audit
    learning      whether a run still learns; when one that does not ends
    alarms        problems detected in a run's metrics
    review        alarms, audit, failures and sample thoughts, for the report
    checkpoints   resolving a path to a model, and the series of a run
    cost          tokens and FLOPs

Import from the modules; importing this package loads none of them.
"""
