"""The Space: look at a CT, ask, read the report as it is written, see where each sentence comes from."""
