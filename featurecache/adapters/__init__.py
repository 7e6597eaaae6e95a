"""The package as other libraries take it: estimators for scikit-learn, a dataset for torch."""
