"""Questions to servers, several at a time: most of their time is waiting for an answer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["together"]

T = TypeVar("T")
R = TypeVar("R")

# Each may have a connection of its own to the same server, which may have few left when a person is
# woken for it.
_AT_ONCE = 4


def together(ask: Callable[[T], R], of: Iterable[T]) -> Iterator[R]:
    """What `ask` answers to each of these, in their order; it is called in threads.

    No more than four are asked before their turn, so that no answer is much older than its use.
    Raises what `ask` raises, when it is that one's turn; those behind the four are not asked then.
    Who stops listening, with Ctrl-C too, waits for none of them.
    """
    asked: deque[Future[R]] = deque()
    for one in of:
        if len(asked) == _AT_ONCE:
            yield asked.popleft().result()
        answer: Future[R] = Future()
        # No pool: the program would end only when all of its threads have.
        threading.Thread(target=_answer, args=(answer, ask, one), name="ask", daemon=True).start()
        asked.append(answer)
    while asked:
        yield asked.popleft().result()


def _answer(answer: Future[R], ask: Callable[[T], R], one: T) -> None:
    try:
        answer.set_result(ask(one))
    except BaseException as error:
        answer.set_exception(error)
