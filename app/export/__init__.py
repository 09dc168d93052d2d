"""The pieces of the Export page: which model, in which form, and what was written."""
