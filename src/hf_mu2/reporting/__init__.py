"""Show what the model says: the report of a volume, its picture and the record of the run."""
