"""torch and transformers models: weights saved whole, classifiers, vocabularies. Import them inside builders."""
