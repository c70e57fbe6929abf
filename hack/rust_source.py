"""Reads Rust sources for the checks in this folder: product files without tests, comments and imports."""

import functools
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent

TOKEN = re.compile(
    r"""
    (?P<skip>\s+|//[^\n]*|/\*.*?\*/)
  | (?P<token>
        b?c?r(?P<hashes>\#*)".*?"(?P=hashes)        # raw string
      | [bc]?"(?:\\.|[^"\\])*"                      # string
      | '(?:\\(?:u\{[0-9a-fA-F]+\}|x..|.)|[^'\\])'  # character
      | '?[A-Za-z_][A-Za-z0-9_]*                    # word or lifetime
      | [0-9][A-Za-z0-9_]*                          # number
      | [^\s]
    )
    """,
    re.VERBOSE | re.DOTALL,
)


def tracked(*patterns):
    """Returns the paths, relative to the root, of files that Git knows or would add."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return sorted(path for path in set(listed.stdout.splitlines()) if (ROOT / path).is_file())


def product_files():
    """Returns the sources of the crates without tests, generated code and helpers of tests."""
    test_helpers = ("crates/devkit/", "crates/testkit/")
    found = []
    for path in tracked("crates/*.rs"):
        parts = path.split("/")
        is_product = parts[2] == "src" and not path.startswith(test_helpers) and "generated" not in parts
        if is_product and "tests" not in parts and path not in test_only_files():
            found.append(path)
    return found


@functools.cache
def test_only_files():
    """Returns the files of modules declared under `#[cfg(test)]`, with everything below them."""
    declared = re.compile(r"#\[cfg\((?:test|any\(test, feature = \"test-util\"\))\)\]\s*(?:pub(?:\([a-z]+\))? )?mod (\w+);")
    found = set()
    for path in tracked("crates/*.rs"):
        for name in declared.findall((ROOT / path).read_text()):
            folder = children_folder(path)
            found.add(f"{folder}/{name}.rs")
            found.update(inner for inner in tracked(f"{folder}/{name}/*.rs"))
    return found


def children_folder(path):
    """Returns the folder of the modules that the file declares."""
    folder, _, name = path.rpartition("/")
    return folder if name in ("lib.rs", "main.rs", "mod.rs") else f"{folder}/{name.removesuffix('.rs')}"


def tokens(text):
    """Returns (token, line) pairs without comments, items under `#[cfg(test)]` and imports."""
    found, line = [], 1
    for match in TOKEN.finditer(text):
        if match["token"] is not None:
            found.append((match["token"], line))
        line += match[0].count("\n")
    return without_imports(without_tests(found))


def without_tests(found):
    kept, at = [], 0
    marker = ["#", "[", "cfg", "(", "test", ")", "]"]
    while at < len(found):
        if [token for token, _ in found[at : at + len(marker)]] == marker:
            at = end_of_item(found, at + len(marker))
        else:
            kept.append(found[at])
            at += 1
    return kept


def without_imports(found):
    kept, at = [], 0
    while at < len(found):
        begins = at == 0 or found[at - 1][0] in (";", "}", "{", ")", "]", "pub")
        if found[at][0] == "use" and begins:
            at = end_of_item(found, at, braces_end=False)
        else:
            kept.append(found[at])
            at += 1
    return kept


def end_of_item(found, at, braces_end=True):
    """Returns the index behind the item: behind its `;`, or behind its outermost braces."""
    depth = 0
    while at < len(found):
        token = found[at][0]
        at += 1
        if token in ("{", "(", "["):
            depth += 1
        elif token in ("}", ")", "]"):
            depth -= 1
            if depth == 0 and token == "}" and braces_end:
                return at
        elif token == ";" and depth == 0:
            return at
    return at
