"""The one place that knows paths: atomic publication, the results store, run folders, the cache and model sources."""
