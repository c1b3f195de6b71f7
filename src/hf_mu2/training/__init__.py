"""Train mu2 and other models that read volumes: stages, recipes, and the little the stock trainers lack."""
