"""finetooth-toolbox: what plugins and the core share and no contract names. Importing it loads nothing heavy."""
