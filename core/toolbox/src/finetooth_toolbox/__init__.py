"""finetooth-toolbox: code that plugins and the core share outside of the contract. Importing it loads nothing heavy."""
