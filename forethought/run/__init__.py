"""What a run leaves on disk, and how it is read back.

    directory     where everything of a run lies
    journal       every consumed batch; the audit
    alarms        what the numbers of a run say is going wrong
    review        alarms, audit, failures and sample thoughts, as a report shows them
    checkpoints   which model a path names, and the series of a run
    cost          tokens and FLOPs

Import from the modules; importing this package loads none of them.
"""
