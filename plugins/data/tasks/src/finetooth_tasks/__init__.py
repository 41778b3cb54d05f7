"""finetooth-tasks: a data source that generates verifiable questions from a seed."""
