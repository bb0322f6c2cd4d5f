"""Built-in tasks on data that ships with Python or with scikit-learn; one file is one task."""
