"""Log messages on a terminal that also has a live display."""

import logging
import sys


class MessageHandler(logging.Handler):
    """Handler that writes to what `sys.stderr` is at that time.

    A live display of rich replaces `sys.stderr`, so that what is written there appears above it. The handler of the
    standard library keeps the stream that it began with, and its messages would land within the display.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)
