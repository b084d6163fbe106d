"""Plugins as their node sees them: found, described in a child process, and never imported here."""
