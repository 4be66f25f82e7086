"""How text that comes from outside is shown: file names, keys of samples, what a server answers.

Such text may hold escape codes that move a terminal's cursor, rewrite what stands there or turn
the reading direction; and bytes that are no text, on which printing fails.
"""


def printable(text: object) -> str:
    r"""The text on one line; whatever a terminal would not simply show is written as \x1b, \n."""
    found = str(text)
    if found.isprintable():
        return found
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in found)


def printable_lines(text: object) -> str:
    """The same for a text of several lines, which it keeps."""
    return "\n".join(map(printable, str(text).split("\n")))
