"""What every replica does: register, receive weights, be probed, work through its queue, drain."""
