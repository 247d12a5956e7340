"""A package, so that this folder's conftest.py and test_contract.py do not clash with those of other folders."""
