"""A mesh in virtual time: the broker's own scheduler among simulated nodes, links and users."""
