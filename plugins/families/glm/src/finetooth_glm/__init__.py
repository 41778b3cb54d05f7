"""The GLM family (GLM-4, 4.5, 4.6) and the markup of GLM-4.5 and 4.6."""
