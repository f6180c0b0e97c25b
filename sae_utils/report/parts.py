"""Parts of the page that grow with the number of SAEs; the largest are left out where the page would be too large."""


class Parts:
    """Figures and tables of a page, measured while it is put together."""

    def __init__(self) -> None:
        self.left_out: set[str] = set()
        self._saved: dict[str, int] = {}

    def __call__(self, name: str, content: str, instead: str) -> str:
        """What stands in the page: a part's content or, if it is left out, what says so.

        Args:
            name: What tells the part from the others.
            content: HTML.
            instead: HTML of a line.
        """
        self._saved[name] = len(content.encode()) - len(instead.encode())
        return instead if name in self.left_out else content

    def leave_out(self, n_bytes: int) -> None:
        """Leave out the largest parts until the page is smaller by so many bytes, or there is none that would help."""
        for name, saved in sorted(self._saved.items(), key=lambda each: -each[1]):
            if n_bytes <= 0 or saved <= 0:
                return
            self.left_out.add(name)
            n_bytes -= saved
