"""MLflow: runs that resume, what was not sent yet, and the model flavour."""
