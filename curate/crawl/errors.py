"""What a request can end with other than bytes."""

from __future__ import annotations


class FetchError(Exception):
    """A request that brought no image: the class of sample.py, and what happened in words."""

    def __init__(
        self, status: str, message: str, *, http_status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.http_status, self.retry_after_s = http_status, retry_after_s

    def again(self) -> FetchError:
        """Return an equal error for another request that ends the same way."""
        return FetchError(self.status, self.message, http_status=self.http_status, retry_after_s=self.retry_after_s)
