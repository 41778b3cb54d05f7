"""EBFT: answers learn to have the features of a reference answer."""
