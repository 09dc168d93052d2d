"""The engine as a process of its own: job queue, models in memory, local HTTP API, its client.

`protocol` and `interface` are what both sides share; neither imports torch, and the app imports nothing else of
`warp_core` but these, `places`, `client`, `fake` and `errors`.
"""
