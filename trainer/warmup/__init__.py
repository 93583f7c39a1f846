"""The warm-up of the think markers: what it trains on, when it ends, and how a run comes to it."""
