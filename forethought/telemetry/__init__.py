"""What a process tells its operators: the ops port and the log."""
