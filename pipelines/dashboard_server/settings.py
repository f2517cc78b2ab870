"""Settings of the dashboard: what it shows, where it listens, and what it writes instead of serving."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from curate.config import require


@dataclass(frozen=True, kw_only=True)
class DashboardConfig:
    """Look at what came in, what was dropped and why, and what other cut-offs would change."""

    root: str
    """Folder (fsspec URL) with `tables/`, as the curation writes it."""
    beside: tuple[str, ...] = ()
    """Roots of other runs, to look at beside this one."""
    host: str = "127.0.0.1"
    """Address to listen on; any but loopback asks for a token, which is printed."""
    port: int = 8765
    """Port to listen on; 0 takes a free one."""
    names: tuple[str, ...] = ()
    """Host names under which browsers reach it, beside loopback's and `host`."""
    show_unchecked: bool = False
    """Show pictures that the score step has not compared with the blocklists yet."""
    index: str | None = None
    """File for the index of the tables, used again at the next start; null makes a temporary one."""
    memory_mb: int = 600
    """Memory for the index; what does not fit stays on the disk."""
    max_megapixels: float = 120.0
    """Pictures above this are not decoded."""
    export: str | None = None
    """Write one self-contained HTML page to this file (fsspec URL) and exit."""
    parquet: str | None = None
    """Write a parquet file for other explorers to this file (fsspec URL) and exit."""

    def __post_init__(self) -> None:
        require(0 <= self.port < 65536, "port", self.port, "must be 0..65535")
        require(self.memory_mb >= 100, "memory_mb", self.memory_mb, "must be at least 100")
        wanted = "name the host names that browsers will use: --names '[curation.example.org]'"
        require(self.host not in ("0.0.0.0", "::") or bool(self.names), "names", list(self.names), wanted)

    def places(self) -> list[tuple[str, str]]:
        """Return the settings that are URLs, each with its value."""
        named = [("root", self.root), *(("beside", root) for root in self.beside)]
        return named + [(name, url) for name, url in (("export", self.export), ("parquet", self.parquet)) if url]

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
