"""MCP tools on a finetooth server; a face (`finetooth.faces`), and no entry."""
