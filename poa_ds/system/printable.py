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


def figure(value: float) -> str:
    """Three digits, or all of the whole ones: 0.31, 4.07, 31, 1,240."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def short(count: int) -> str:
    """A count with three significant digits: 40.2 K, 22.1 M, 304 M."""
    if count >= 999_500_000:
        return f"{count / 1e9:.3g} G"
    return f"{count / 1e6:.3g} M" if count >= 999_500 else f"{count / 1e3:.3g} K"


def duration(seconds: float) -> str:
    """The length of something that is not over: 40 s, 12 min, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def printable_lines(text: object) -> str:
    """The same for a text of several lines, which it keeps."""
    return "\n".join(map(printable, str(text).split("\n")))
