"""The pages of the documentation, and the fenced blocks of code in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md"))
)

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        page: Path of its page in the repository.
        line: Number of its first line of code.
        language: Language after the fence; "" if none.
        text: Code.
    """

    page: str
    line: int
    language: str
    text: str

    def commands(self) -> list[str]:
        """Return the commands of a shell block, without comments and empty lines."""
        joined = self.text.replace("\\\n", " ")
        return [command for line in joined.splitlines() if (command := re.sub(r"(^|\s)#\s.*$", "", line).strip())]


def text_of(page: str) -> str:
    """Return a page's Markdown."""
    return (ROOT / page).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    """Return a page's fenced blocks, in order."""
    text = text_of(page)
    return [Block(page, text.count("\n", 0, found.start(3)) + 1, found[2], found[3]) for found in _FENCE.finditer(text)]


def prose(page: str) -> str:
    """Return a page's Markdown without its fenced blocks."""
    return _FENCE.sub("", text_of(page))
