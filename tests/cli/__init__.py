"""The command line, called in this process but for a few tests of the process itself."""
