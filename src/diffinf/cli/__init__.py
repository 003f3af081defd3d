"""The command line. A command is a plain function; what is heavy is imported inside it."""

from __future__ import annotations

import errno
import sys

# They add their commands.
from diffinf.cli import (  # noqa: F401
    crop,
    datasets,
    detect,
    edits,
    evaluate,
    export,
    generate,
    inspect,
    models,
    runs,
)
from diffinf.cli.app import app
from diffinf.errors import UserError

__all__ = ["app", "main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one clear line on stderr and exit code 2."""
    try:
        app(args=arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT):
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
