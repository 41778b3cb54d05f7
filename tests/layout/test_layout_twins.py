"""What is written once stays written once: fixtures that plugins' tests share, and the search for the nearest name."""

import ast
from collections import defaultdict

TWIN_LINES = 6
"""Functions shorter than this may be alike."""


def test_no_two_plugins_test_with_the_same_function(root):
    """What the tests of several plugins need is in `finetooth_kit`, from which they import it."""
    places = defaultdict(set)
    for file in (*root.glob("plugins/*/*/tests/**/*.py"), *root.glob("contrib/*/tests/**/*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and lines(node) >= TWIN_LINES:
                places[ast.dump(node)].add(f"{file.relative_to(root)}: {node.name}")
    assert not [sorted(twins) for twins in places.values() if len(twins) > 1]


def test_names_are_compared_in_one_place(package):
    """`finetooth_toolbox.text.nearest` knows prefixes, capitals and hyphens; `difflib` alone does not."""
    found = [
        file.name
        for file in package.sources
        if file.name != "nearest.py" and "get_close_matches" in file.read_text(encoding="utf-8")
    ]
    assert not found


def lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1
