"""The GLM family (GLM-4, 4.5, 4.6) and the markups of GLM-4.5 to 4.7 and GLM-5."""
