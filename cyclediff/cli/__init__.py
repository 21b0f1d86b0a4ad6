"""The command line: what is started, and what a person reads when something is wrong."""
