"""What went on beside the other acts: the vendors, told in the order in which it was."""

from __future__ import annotations

import time

from headrace.demo.story import Story
from headrace.demo.vendor_count import Delivered
from headrace.demo.vendor_play import Play

__all__ = ["tell"]

_POLL_S = 0.1


def tell(story: Story, play: Play) -> Delivered:
    """Say what has been, and what still happens; returns when it is over. Raises DemoError."""
    told = 0
    while True:
        over = play.done()
        for note in play.notes[told:]:
            story.say(note.sentence, note.style, note.at_s)
            told += 1
        if over:
            break
        time.sleep(_POLL_S)
    found = play.result()
    others = [line for line in found.lines if line.slowest_s is not None]
    slow = ", ".join(f"{line.vendor} {line.slowest_s:.1f} s" for line in others)
    story.say(
        f"Meanwhile the others went on: the slowest event of those {found.outage.seconds:.1f} s "
        f"took to {slow}."
    )
    copies = sum(line.copies for line in found.lines)
    story.say(
        f"What was not final at the kill was sent again under the same keys: the vendors knew "
        f"{copies:,} copies by them, and stored none."
    )
    return found
