"""Scripts that run in the peers' environment: mergekit, TRL and plain transformers; none of them imports warp_core."""
