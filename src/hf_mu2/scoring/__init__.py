"""Score candidate reports against reference reports. Imports nothing else of the package."""
