"""What roles tell about themselves."""
