"""The pieces of the Train page: the form, presets, an estimate, the list of runs, and the curves of one."""
