"""Networks by name, as Predictors, and the model folder they are kept in."""
