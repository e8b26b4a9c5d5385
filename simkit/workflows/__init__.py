"""The complete ways through simkit that the command line calls."""
