"""The Mistral family (Mistral, Mixtral, Ministral) and its renderer."""
