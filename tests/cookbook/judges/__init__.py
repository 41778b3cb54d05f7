"""Recipes of tinker-cookbook that judge the Tinker wire: which, against what, and the page of how they ended."""
