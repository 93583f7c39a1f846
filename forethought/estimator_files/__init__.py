"""One advantage estimator per file; see forethought/estimators.py."""
