"""A checkpoint as a service: an OpenAI-compatible endpoint, DICOMweb in, and a watched folder."""
