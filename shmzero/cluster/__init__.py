"""Self-play on the nodes of a Ray cluster; its README says what is where."""
