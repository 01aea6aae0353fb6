"""Where the console script begins: the heap first, as a process that has loaded nothing starts anew fastest."""

from __future__ import annotations

from .heap import limit_product_caches, restart_with_tuned_heap


def main() -> None:
    limit_product_caches()
    restart_with_tuned_heap()
    from .main import app

    app()


if __name__ == "__main__":
    main()
