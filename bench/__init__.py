"""What the engine, its peers and the machine itself take for the same work: `make bench` runs it all."""
