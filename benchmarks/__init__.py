"""Speed as ratios against a peer, both measured in one run. The last line of each is JSON."""
