"""The pilot in a browser, on a page of its own."""
